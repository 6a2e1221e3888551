"use strict";
/* What the browser does by itself: the URL, the step, the keyboard, saving, hover across figures. */
(function () {
  const NO = () => window.dash_clientside.no_update;
  const DEFAULTS = {
    quantity: "output_gradient_norm", bins: "median", smooth: "0", x: "step", y: "usual",
  };
  const MOST_RUNS = 24;
  const here = {
    over: false, block: null, steps: [], label: "step", opens: null, final: null, step: null, marked: new Set(), opened: false, typed: "",
  };
  const byId = (id) => document.getElementById(id);
  const set = (id, props) => window.dash_clientside.set_props(id, props);

  function params() {
    return new URLSearchParams(window.location.search);
  }

  function query(found) {
    const text = found.toString();
    return text ? "?" + text : "";
  }

  function withoutStep() {
    const found = params();
    found.delete("step");
    return query(found);
  }

  /** Put a query string into the address bar without a new entry in the history. */
  function replace(found) {
    const address = window.location.pathname + query(found) + window.location.hash;
    window.history.replaceState(window.history.state, "", address);
  }

  /** Go to an address of the dashboard as a link would. */
  function go(address) {
    window.history.pushState({}, "", address);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.dispatchEvent(new PopStateEvent("popstate"));
  }

  const scripts = {
    /** Controls of the page: write what they say into the address. */
    control(values, ids, current) {
      const found = params();
      const quantity = found.get("quantity") || DEFAULTS.quantity;
      ids.forEach((id, at) => {
        found.delete(id.key);
        [values[at] ?? ""].flat().map(String).forEach((value) => {
          const usual = id.key === "of" ? found.get("run") : DEFAULTS[id.key];
          if (value !== "" && value !== usual) found.append(id.key, value);
        });
      });
      // The chosen layers belong to the table of the quantity.
      if ((found.get("quantity") || DEFAULTS.quantity) !== quantity) found.delete("layer");
      // What is said of other runs is asked for with their page.
      if (window.location.pathname === "/" && `${found.getAll("few")}` !== `${params().getAll("few")}`) {
        go("/" + query(found));
        return NO();
      }
      if (query(found) !== window.location.search) replace(found);
      const search = withoutStep();
      if (sameQuery(search, current)) return NO();
      // A slider says something new every frame: figures follow when it rests.
      const told = window.dash_clientside.callback_context.triggered;
      if (!told.some((one) => one.prop_id.includes('"smooth"'))) return search;
      window.clearTimeout(here.asking);
      here.asking = window.setTimeout(() => set("search", { data: withoutStep() }), 120);
      return NO();
    },
    pick(runs) {
      const found = params();
      if (JSON.stringify(found.getAll("run")) === JSON.stringify(runs || [])) return NO();
      const known = new Set(found.getAll("run"));
      // A name that cannot be opened is not in the field, and must not vanish from the address.
      if ((runs || []).length === 0 && known.size && !here.picked) return NO();
      [...found.keys()].filter((key) => key.startsWith("zoom-")).forEach((key) => found.delete(key));
      found.delete("run");
      found.delete("layer");
      (runs || []).forEach((run) => found.append("run", run));
      return query(found);
    },
    links(search, step, ids) {
      return ids.map((id) => id.key + window.location.search);
    },
    steps(data, step) {
      here.steps = (data && data.steps) || [];
      here.label = (data && data.label) || "step";
      here.opens = data ? data.opens ?? null : null;
      here.final = data ? data.final ?? null : null;
      window.gradientflow.overview = (data && data.overview) || null;
      buildSlider();
      if (step != null) showStep(step);
      return NO();
    },
    /** A page without runs is asked for again when what it waits for changes: it may have one now. */
    arrived(mark) {
      const place = byId("nothing-yet");
      if (place && mark && place.dataset.mark !== mark) window.location.reload();
      return NO();
    },
    live(data) {
      here.over = Boolean(data && data.over);
      return here.over || document.hidden;
    },
    scheme(path, scheme, isNarrow) {
      const wanted = dark.matches ? "dark" : "light";
      return [wanted === scheme ? NO() : wanted, narrow.matches === isNarrow ? NO() : narrow.matches];
    },
    block(value) {
      if (value == null && here.block == null) return NO();
      here.block = value;
      if (value == null) return "";
      return "^" + value.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") + "\\.";
    },
  };
  window.dash_clientside = Object.assign({}, window.dash_clientside, { gradientflow: scripts });
  window.gradientflow = { overview: null, show: [], prepare() {}, offer() {} };

  function sameQuery(one, other) {
    const sorted = (text) => {
      const found = new URLSearchParams(text || "");
      found.sort();
      return found.toString();
    };
    return sorted(one) === sorted(other);
  }

  /* The step: a native slider, moved without a round trip. */

  function buildSlider() {
    const place = byId("step-slider");
    if (!place) return;
    if (!place.firstChild) {
      place.innerHTML =
        '<label for="step-range">step</label>' +
        '<input type="range" id="step-range" min="0" step="1">' +
        '<output id="step-output" for="step-range"></output>' +
        '<button type="button" class="plain-button" id="step-last">last</button>';
      const range = byId("step-range");
      range.addEventListener("input", () => showStep(here.steps[Number(range.value)]));
      range.addEventListener("change", commitStep);
      byId("step-last").addEventListener("click", () => {
        showStep(lastStep());
        commitStep();
      });
    }
    place.classList.toggle("is-empty", here.steps.length < 2);
    place.querySelector("label").textContent = here.label;
    byId("step-range").max = String(Math.max(0, here.steps.length - 1));
    const asked = params().get("step");
    here.step = asked == null ? null : Number(asked);
    drawSlider();
  }

  /** Place of the step that is nearest to one. */
  function nearest(steps, step) {
    let best = 0;
    for (let at = 1; at < steps.length; at += 1) {
      if (Math.abs(steps[at] - step) < Math.abs(steps[best] - step)) best = at;
    }
    return best;
  }

  /** What stands for the last step: nothing, unless the page opens at another one. */
  function lastStep() {
    return here.opens == null ? null : here.steps[here.steps.length - 1];
  }

  function drawSlider() {
    const range = byId("step-range");
    if (!range) return;
    const at = here.step == null ? here.steps.length - 1 : nearest(here.steps, here.step);
    range.value = String(at);
    const step = here.steps[at];
    const end = step === here.final ? " (final weights)" : step === here.opens ? " (last finite)" : at === here.steps.length - 1 ? " (last)" : "";
    const text = step == null ? "–" : step.toLocaleString("en") + end;
    byId("step-output").textContent = text;
    window.gradientflow.offer(step);
    range.setAttribute("aria-valuetext", "step " + text);
  }

  /** Show another step in everything that can follow by itself. */
  function showStep(step) {
    here.step = step == null ? null : here.steps[nearest(here.steps, step)] ?? step;
    drawSlider();
    keepWhileDragging();
    const shown = here.step == null ? here.steps[here.steps.length - 1] : here.step;
    if (shown != null) window.gradientflow.show.forEach((show) => show(shown));
  }

  /** Keep the step that is shown: in the address, and for figures that the server draws. */
  function commitStep() {
    keepStep();
    set("step", { data: here.step });
  }

  function keepStep() {
    window.clearTimeout(here.keeping);
    here.keeping = null;
    const found = params();
    if (here.step == null) found.delete("step");
    else found.set("step", String(here.step));
    if (query(found) !== window.location.search) replace(found);
  }

  /** The address follows a drag, as often as a browser lets a page change it. */
  function keepWhileDragging() {
    const keep = () => { here.keeping = null; if (byId("step-range")) keepStep(); };
    here.keeping = here.keeping || window.setTimeout(keep, 150);
  }

  function moveStep(by) {
    if (here.steps.length < 2) return;
    const at = here.step == null ? here.steps.length - 1 : nearest(here.steps, here.step);
    const next = Math.min(here.steps.length - 1, Math.max(0, at + by));
    showStep(next === here.steps.length - 1 ? lastStep() : here.steps[next]);
    window.clearTimeout(here.timer);
    here.timer = window.setTimeout(commitStep, 250);
  }

  function chooseLayer(name) {
    const found = params();
    found.delete("layer");
    found.append("layer", name);
    if (window.location.pathname === "/flow") {
      replace(found);
      set("search", { data: withoutStep() });
    } else {
      replace(found);
      go("/flow" + window.location.search);
    }
  }
  Object.assign(window.gradientflow, {
    showStep, commitStep, chooseLayer, shownStep, nearest, graphOf, go, set, params, replace, withoutStep,
  });

  function shownStep() {
    return here.step == null ? here.steps[here.steps.length - 1] : here.step;
  }

  /* Saving a figure. */

  function graphOf(key) {
    return document.querySelector(`[data-panel="${CSS.escape(key)}"] .js-plotly-plot`);
  }

  function save(kind, key) {
    if (kind === "csv") {
      const link = document.createElement("a");
      link.href = "/csv/" + encodeURIComponent(key) + window.location.search;
      link.download = key + ".csv";
      link.click();
      return;
    }
    const graph = graphOf(key);
    if (!graph || !graph.layout) return;
    const paper = getComputedStyle(graph.closest(".card")).backgroundColor;
    const layout = Object.assign({}, graph.layout, { paper_bgcolor: paper });
    window.Plotly.downloadImage(
      { data: graph.data, layout },
      {
        format: kind, filename: key, scale: kind === "png" ? 2 : 1,
        width: graph.clientWidth || 900, height: graph.clientHeight || 500,
      },
    );
  }

  /** Put a command into the clipboard; where that is not allowed, select it to be copied by hand. */
  function copy(button) {
    const done = () => { button.textContent = "copied"; };
    const choose = () => window.getSelection().selectAllChildren(button.previousElementSibling || button);
    if (!navigator.clipboard) choose();
    else navigator.clipboard.writeText(button.dataset.copy).then(done, choose);
  }

  /* Runs that are marked to be compared. */

  function paintMarks() {
    document.querySelectorAll("input.mark").forEach((box) => {
      box.checked = here.marked.has(box.dataset.run);
    });
    const compare = byId("compare-marked");
    if (!compare) return;
    compare.disabled = here.marked.size < 2;
    compare.textContent =
      here.marked.size < 2 ? "Compare marked runs"
        : `${here.marked.size > 3 ? "Overlay" : "Compare"} ${here.marked.size} marked runs`;
  }

  function mark(run) {
    if (here.marked.has(run)) here.marked.delete(run);
    else if (here.marked.size < MOST_RUNS) here.marked.add(run);
    paintMarks();
  }

  function compareMarked() {
    const found = new URLSearchParams();
    here.marked.forEach((run) => found.append("run", run));
    const page = here.marked.size > 3 ? "/training" : "/compare";
    here.marked.clear();
    go(page + query(found));
  }

  /* Clicks and keys. */

  function openPages(open) {
    here.opened = open;
    byId("nav-open").setAttribute("aria-expanded", String(open));
    const collapsed = { mobile: !open };
    set("shell", { navbar: { width: 190, breakpoint: "sm", collapsed } });
  }

  document.addEventListener("click", (event) => {
    const target = event.target.closest("button, a");
    if (!target) return;
    if (target.dataset.copy) copy(target);
    else if (target.dataset.save) save(target.dataset.save, target.dataset.key);
    else if (target.id === "compare-marked") compareMarked();
    else if (target.id === "help-open") set("help", { opened: true });
    else if (target.id === "nav-open") openPages(!here.opened);
    else if (here.opened && target.closest("#nav")) openPages(false);
  });
  document.addEventListener("change", (event) => {
    if (event.target.classList.contains("mark")) mark(event.target.dataset.run);
  });
  document.addEventListener("pointerdown", (event) => {
    if (event.target.closest(".run-picker")) here.picked = true;
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest(".run-picker")) here.picked = true;
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, [role=dialog], [role=listbox]")) return;
    const first = here.typed;
    here.typed = "";
    if (first === "g" && pageOf(event.key)) go(pageOf(event.key) + window.location.search);
    else if (event.key === "g") here.typed = "g";
    else if (event.key === "?") set("help", { opened: true });
    else if (event.key === "ArrowLeft") moveStep(-1);
    else if (event.key === "ArrowRight") moveStep(1);
    else if (event.key === "Home") moveStep(-here.steps.length);
    else if (event.key === "End") moveStep(here.steps.length);
    else if (event.key === "/") focusFilter();
    else return;
    if (event.key === "/" || (event.key.startsWith("Arrow") && here.steps.length)) {
      event.preventDefault();
    }
  });

  /** Path of the page of a letter; the list stands in the page. */
  function pageOf(letter) {
    return JSON.parse(byId("letters").dataset.pages)[letter];
  }

  function focusFilter() {
    const field = document.querySelector('input[id*="\"find\""], input[id*="\"layers\""]');
    if (field) field.focus();
  }

  /* Light or dark, seen or hidden: as the system says. */

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => set("scheme", { data: dark.matches ? "dark" : "light" }));
  const narrow = window.matchMedia("(max-width: 48em)");
  narrow.addEventListener("change", () => set("narrow", { data: narrow.matches }));
  document.addEventListener("visibilitychange", () => {
    set("poll", { disabled: here.over || document.hidden });
  });

  /* What new content needs. */

  let waiting = false;
  function tend() {
    waiting = false;
    const title = document.querySelector("#content h1");
    if (title) document.title = title.textContent + " – Gradient flow";
    const slider = byId("step-slider");
    if (slider && !slider.firstChild && here.steps.length) buildSlider();
    if (slider && here.steps.length) window.gradientflow.offer(shownStep());
    paintMarks();
    document.querySelectorAll(".js-plotly-plot").forEach(window.gradientflow.hook || (() => {}));
    const wanted = window.location.hash && byId(decodeURIComponent(window.location.hash.slice(1)));
    if (wanted && here.hash !== window.location.href) {
      here.hash = window.location.href;
      wanted.scrollIntoView();
      document.querySelectorAll(".pointed").forEach((one) => one.classList.remove("pointed"));
      wanted.closest(".card")?.classList.add("pointed");
    }
  }

  new MutationObserver(() => {
    window.gradientflow.prepare();
    if (waiting) return;
    waiting = true;
    window.setTimeout(tend, 80);
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
