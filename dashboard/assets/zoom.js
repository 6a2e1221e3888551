"use strict";
/* One zoom for the figures of a page: along steps, epochs, time or depth. The address holds it. */
(function () {
  const shared = window.gradientflow;
  const KINDS = {
    "zoom-step": /^steps?\b/, "zoom-epoch": /^epoch\b/, "zoom-time": /^seconds of training/,
    "zoom-depth": /^depth:/, "zoom-relative": /^relative depth/,
  };
  const zooming = new WeakSet();
  let keeping = null;

  /** Axes of a figure that others may have too; the overview's own drag moves the step instead. */
  function axesOf(graph) {
    const full = graph._fullLayout, card = graph.closest("[data-panel]");
    if (!full || !full._plots || !card || card.dataset.panel === "overview") return [];
    const found = new Map();
    Object.values(full._plots).filter((plot) => !plot.yaxis.overlaying).forEach((plot) => {
      [plot.xaxis, plot.yaxis].forEach((axis) => {
        const lead = axis.matches ? full[axis.matches.replace(/^([xy])/, "$1axis")] : axis;
        const titles = [axis, lead].map((one) => String((one && one.title && one.title.text) || ""));
        const kind = Object.keys(KINDS).find((name) => titles.some((text) => KINDS[name].test(text)));
        const shift = (full.meta && full.meta.shift) || 0;
        if (kind) found.set(axis._name, { axis, kind, shift: isLog(axis) ? shift : 0 });
      });
    });
    return [...found].map(([name, one]) => ({ name, ...one }));
  }

  const isLog = (axis) => axis.type === "log";
  // Logarithms are of places that were moved, so that step 0 has one.
  const outward = ({ axis, shift }, range) => range.map((end) => (isLog(axis) ? 10 ** end - shift : Number(end)));
  const inward = ({ axis, shift }, range) => range.map((end) => (isLog(axis) ? Math.log10(end + shift) : end));

  function asked(kind) {
    const ends = (shared.params().get(kind) || "").split(",").map(Number);
    return ends.length === 2 && ends.every(Number.isFinite) && ends[0] < ends[1] ? ends : null;
  }

  const near = (one, other) => {
    const size = Math.abs(one[1] - one[0]) || 1;
    return one.every((end, at) => Math.abs(end - other[at]) < 1e-3 * size);
  };

  function initial(axis) {
    const ends = [axis._rangeInitial0, axis._rangeInitial1];
    return ends.every((end) => end != null) && !axis._autorangeInitial ? ends : null;
  }

  /** Bring the axes of a figure to what the address asks for; `freed` ones to where they began. */
  function follow(graph, freed) {
    if (zooming.has(graph)) return;
    const changes = {};
    axesOf(graph).forEach(({ name, axis, kind, shift }) => {
      const wanted = asked(kind);
      if (wanted) {
        const range = inward({ axis, shift }, wanted);
        if (range.every(Number.isFinite) && !near(axis.range, range)) changes[name + ".range"] = range;
      } else if (freed && freed.has(kind)) {
        if (initial(axis)) changes[name + ".range"] = initial(axis);
        else changes[name + ".autorange"] = true;
      }
    });
    if (!Object.keys(changes).length) return;
    shared.unsync(graph);
    zooming.add(graph);
    const done = () => zooming.delete(graph);
    window.Plotly.relayout(graph, changes).then(done, done);
  }

  /** What a reader has done to a figure: kinds of axes with their new ranges, null where freed. */
  function changed(graph, event) {
    const found = new Map();
    axesOf(graph).forEach(({ name, axis, kind, shift }) => {
      const touched = Object.keys(event).filter((key) => key.startsWith(name + "."));
      if (!touched.length) return;
      const isFree = event[name + ".autorange"] === true
        || (initial(axis) && near(axis.range, initial(axis)));
      found.set(kind, isFree ? null : outward({ axis, shift }, axis.range));
    });
    return found;
  }

  function keep(found) {
    const params = shared.params();
    found.forEach((range, kind) => {
      if (range === null) params.delete(kind);
      else params.set(kind, range.map((end) => Number(end.toPrecision(6))).join(","));
    });
    shared.replace(params);
  }

  function zoomed(graph, event) {
    if (zooming.has(graph) || !event) return;
    const found = changed(graph, event);
    if (!found.size) return;
    window.clearTimeout(keeping);
    keeping = null;
    keep(found);
    const freed = new Set([...found.keys()].filter((kind) => found.get(kind) === null));
    document.querySelectorAll(".js-plotly-plot").forEach((other) => {
      if (other !== graph) follow(other, freed);
    });
  }

  /** While a figure is dragged the address follows, as often as a browser lets a page change it. */
  function zooms(graph, event) {
    const found = changed(graph, event);
    if (!found.size || keeping) return;
    keeping = window.setTimeout(() => { keeping = null; keep(found); }, 150);
  }

  shared.watchZoom = (graph) => {
    ["plotly_relayout", "plotly_relayouting"].forEach((name) => graph.removeAllListeners(name));
    graph.on("plotly_relayout", (event) => zoomed(graph, event));
    graph.on("plotly_relayouting", (event) => zooms(graph, event));
  };
  // Plotly says that it has drawn before it says what the reader has done.
  shared.followZoom = (graph) => window.setTimeout(() => follow(graph, null), 0);
})();
