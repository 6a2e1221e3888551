"use strict";
/* The network: its library is loaded by the page that shows it; a click chooses, opens and closes. */
(function () {
  const scripts = window.dash_clientside.gradientflow, shared = window.gradientflow;
  const SUITE = "/_dash-component-suites/dash_cytoscape/dash_cytoscape_extra.min.js";
  let loading = null, wired = null, last = null;

  function library() {
    loading = loading || new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = SUITE;
      script.onload = resolve;
      script.onerror = reject;
      document.head.append(script);
    });
    return loading;
  }

  const place = () => document.getElementById("network-place");
  const core = () => {
    const element = document.getElementById("network-graph");
    const cy = element && element._cyreg ? element._cyreg.cy : null;
    return cy && !cy.destroyed() ? cy : null;
  };
  /** What stands where: with other nodes the library lays them out again. */
  const shapeOf = (data) => JSON.stringify(data.elements.map((one) => one.data.id));

  scripts.network = function (data) {
    if (data && place()) library().then(() => draw(data));
    return window.dash_clientside.no_update;
  };

  function draw(data) {
    if (!place()) return;
    const shape = shapeOf(data) + data.layout.rankDir;
    const isSame = core() && last === shape;
    last = shape;
    if (isSame) {
      shared.set("network-graph", { elements: data.elements, stylesheet: data.stylesheet });
    } else {
      const props = {
        id: "network-graph", elements: data.elements, stylesheet: data.stylesheet,
        layout: data.layout, responsive: true, boxSelectionEnabled: false, autoungrabify: true,
        userZoomingEnabled: false, userPanningEnabled: false, autoRefreshLayout: false,
        style: { width: "100%", height: "100%" },
      };
      // Another key: another graph, rather than one that is changed in place.
      const graph = { namespace: "dash_cytoscape", type: "Cytoscape", props };
      delete place().dataset.nodes;
      place().dataset.direction = data.layout.rankDir;
      shared.set("network-place", { children: null });
      window.setTimeout(() => shared.set("network-place", { children: graph }), 0);
    }
    place().parentElement.setAttribute("aria-label", data.label);
    // At once, before its page may be gone.
    window.setTimeout(wire, 0);
  }

  function wire() {
    const cy = core();
    if (!cy) {
      if (place()) window.setTimeout(wire, 5);
      return;
    }
    if (cy === wired) return;
    wired = cy;
    // The library asks a graph that is gone what its page was.
    const kind = Object.getPrototypeOf(cy), headless = kind.headless;
    if (!kind.guarded) {
      kind.guarded = true;
      kind.headless = function () { return this.destroyed() || headless.call(this); };
    }
    if (cy.nodes().some((node) => node.position().x)) arrange(cy);
    cy.one("layoutstop", () => arrange(cy));
    // It keeps where it stands, and learns too late that the page was scrolled or has grown above.
    ["onpointerenter", "onpointerdown"].forEach((name) => {
      place()[name] = () => { if (core()) core().resize(); };
    });
    cy.on("tap", "node", (event) => tapped(event.target.data(), event.target.hasClass("marked")));
    cy.on("mouseover", "node", (event) => say(event.target.data("says")));
    cy.on("mouseout", "node", () => say(""));
  }

  /** Make the place as large as the network is in letters that can be read; the frame scrolls. */
  function arrange(cy) {
    if (cy.destroyed()) return;
    const box = cy.elements().boundingBox(), frame = place().closest(".network-frame");
    const free = frame.clientWidth - 4, pad = 24;
    const scale = Math.min(1.25, Math.max(0.8, (free - 2 * pad) / box.w));
    place().parentElement.style.width = Math.max(free, box.w * scale + 2 * pad) + "px";
    place().parentElement.style.height = box.h * scale + 2 * pad + 40 + "px";
    cy.resize();
    cy.zoom(scale);
    const left = Math.max(pad, (free - box.w * scale) / 2);
    cy.pan({ x: left - box.x1 * scale, y: pad + 20 - box.y1 * scale });
    cy.edges(".arc").forEach((edge) => bend(cy, edge));
    place().dataset.nodes = String(cy.nodes().length);
  }

  /** Lead an arc past what lies between its ends, on the side where nothing does. */
  function bend(cy, edge) {
    const from = edge.source().position(), to = edge.target().position();
    const long = Math.hypot(to.x - from.x, to.y - from.y) || 1;
    const across = { x: -(to.y - from.y) / long, y: (to.x - from.x) / long };
    const side = (at) => (at.x - from.x) * across.x + (at.y - from.y) * across.y;
    const along = (at) => ((at.x - from.x) * (to.x - from.x) + (at.y - from.y) * (to.y - from.y)) / long;
    let sum = 0;
    cy.nodes(".closed").forEach((node) => {
      const at = node.position(), way = along(at);
      if (way > 1 && way < long - 1 && Math.abs(side(at)) < 120) sum += side(at);
    });
    edge.style("control-point-distances", sum > 0.5 ? -48 : 48);
  }

  function say(text) {
    place().parentElement.title = text;
  }

  function tapped(node, isMarked) {
    if (isMarked && node.opens) toggle(node.id);
    else if (node.pattern) choose(node.pattern);
    else if (node.opens) toggle(node.id);
  }

  /** Show these layers alone, here and on the other pages. */
  function choose(pattern) {
    shared.set({ type: "control", key: "layers" }, { value: pattern });
  }

  function toggle(key) {
    const cy = core(), found = shared.params();
    const isOpen = cy && cy.getElementById(key).hasClass("open");
    const without = (name) => {
      const kept = found.getAll(name).filter((one) => one !== key);
      found.delete(name);
      kept.forEach((one) => found.append(name, one));
    };
    without("open");
    without("close");
    found.append(isOpen ? "close" : "open", key);
    shared.replace(found);
    shared.set("search", { data: shared.withoutStep() });
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-graph=network] button");
    if (!button) return;
    if (button.dataset.pattern) choose(button.dataset.pattern);
    else if (button.dataset.node) toggle(button.dataset.node);
  });
})();
