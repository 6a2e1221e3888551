"use strict";
/* Figures that answer each other: a step under the cursor is marked in all, a click chooses it. */
(function () {
  const shared = window.gradientflow;
  const hooked = new WeakSet();

  /** Axes of a figure along which steps run, with the subplots that they belong to. */
  function stepAxes(graph) {
    const full = graph._fullLayout;
    if (!full || !full._plots) return [];
    return Object.values(full._plots).filter((plot) => !plot.yaxis.overlaying).flatMap((plot) =>
      [plot.xaxis, plot.yaxis]
        .filter((axis) => axis && (isStep(full, axis) || placesOf(graph, axis)))
        .map((axis) => ({ axis, plot, isX: axis === plot.xaxis })),
    );
  }

  /** An axis that matches another has the title of that one. */
  function isStep(full, axis) {
    const lead = axis.matches ? full[axis.matches.replace(/^([xy])/, "$1axis")] : null;
    return [axis, lead].some(
      (one) => one && one.title && /^step(s?)\b/.test(String(one.title.text || "")),
    );
  }

  /** Where steps stand on an axis of epochs, of time or of logarithms; null on one of steps. */
  function placesOf(graph, axis) {
    const known = ((graph._fullLayout && graph._fullLayout.meta) || {}).steps;
    return (known && axis && (known[axis._id] || known[axis.matches])) || null;
  }

  function placeOf(graph, axis, step) {
    const places = placesOf(graph, axis);
    return places ? places.at[shared.nearest(places.step, step)] : step;
  }

  const keyOf = (graph) => (graph.closest("[data-panel]") || { dataset: {} }).dataset.panel;
  const lines = (graph, name) => graph.parentElement.querySelectorAll(".step-line." + name);

  /** Mark a step in a figure by thin lines over it; drawing shapes would take 50 ms. */
  function markStep(graph, step, name) {
    const box = graph.parentElement;
    lines(graph, name).forEach((one) => one.remove());
    // The overview has lines of its own for the chosen step.
    if (step == null || (name === "chosen" && keyOf(graph) === "overview")) return;
    stepAxes(graph).forEach(({ axis, plot, isX }) => {
      const at = axis.d2p(placeOf(graph, axis, step));
      if (!(at >= 0 && at <= axis._length)) return;
      const mark = document.createElement("div");
      mark.className = "step-line " + name;
      const other = isX ? plot.yaxis : plot.xaxis;
      const style = isX
        ? { left: axis._offset + at, top: other._offset, width: 0, height: other._length }
        : { left: other._offset, top: axis._offset + at, width: other._length, height: 0 };
      Object.entries(style).forEach(([key, value]) => {
        mark.style[key] = value + "px";
      });
      box.appendChild(mark);
    });
  }

  function everywhere(step, name, except) {
    document.querySelectorAll(".js-plotly-plot").forEach((graph) => {
      if (graph !== except) markStep(graph, step, name);
    });
  }

  /** The step that a point of a figure stands at; null where its axes know none. */
  function stepOf(graph, point) {
    if (!point || !point.xaxis) return null;
    const full = graph._fullLayout;
    for (const [axis, value] of [[point.xaxis, point.x], [point.yaxis, point.y]]) {
      const places = placesOf(graph, axis);
      // Lines over epochs or time say the step of each point: two runs differ.
      if (places && point.fullData.type !== "heatmap" && point.customdata != null) return Number(point.customdata);
      if (places) return places.step[shared.nearest(places.at, Number(value))];
      if (isStep(full, axis)) return Number(value);
    }
    return null;
  }

  /** The layer of a cell: the axis knows the names; a group begins with its first. */
  function layerOf(point) {
    const names = point.xaxis.labelalias || {};
    const found = names[Number(point.x).toFixed(3).replace("-", "\u2212")];
    if (!found) return null;
    const name = found.split(" … ")[0];
    // A name that is cut in its middle says no longer which layer it is.
    if (name.includes("…")) return null;
    return name.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  }

  /** Keep Dash from copying a zoom into the figure that it holds: plotly then takes the zoom for
      what the server wanted, and drops it when the next rows arrive. */
  shared.unsync = function (graph) {
    graph.removeAllListeners("plotly_restyle");
    shared.watchZoom(graph);
  };
  document.addEventListener("pointerdown", (event) => {
    const graph = event.target.closest && event.target.closest(".js-plotly-plot");
    if (graph && graph.removeAllListeners) shared.unsync(graph);
  }, true);

  /** Where a window becomes narrow the color bar is laid flat. Plotly (4.1) measures it by the letters
      of the one that stands there, and leaves hundreds of pixels of margin, or no room at all: the
      bar is drawn anew instead. */
  function turn(graph, layout) {
    const full = graph && graph._fullLayout;
    if (!full || !full.coloraxis || !full.coloraxis.colorbar) return;
    const bar = (layout && layout.coloraxis && layout.coloraxis.colorbar) || {};
    if (full.coloraxis.colorbar.orientation === (bar.orientation || "v")) return;
    graph.querySelectorAll("g.colorbar").forEach((one) => one.remove());
    full._reservedMargin = {};
  }

  /** As soon as plotly is there, which comes with the first figure. */
  shared.prepare = function () {
    const plotly = window.Plotly;
    if (!plotly || plotly.react.turns) return;
    const react = plotly.react;
    plotly.react = function (graph, figure, layout, ...rest) {
      turn(typeof graph === "string" ? document.getElementById(graph) : graph, layout || (figure && figure.layout));
      return react.call(this, graph, figure, layout, ...rest);
    };
    plotly.react.turns = true;
  };

  shared.hook = function (graph) {
    if (hooked.has(graph)) shared.drawn(graph, false);
    if (hooked.has(graph) || !graph.on || !graph._fullLayout) return;
    hooked.add(graph);
    graph.parentElement.style.position = "relative";
    graph.on("plotly_hover", (event) => {
      const step = stepOf(graph, event.points && event.points[0]);
      everywhere(step, "hovered", graph);
      shared.preview(keyOf(graph), step);
    });
    graph.on("plotly_unhover", () => {
      everywhere(null, "hovered");
      shared.preview(keyOf(graph), null);
    });
    graph.on("plotly_click", (event) => choose(graph, event.points && event.points[0]));
    graph.on("plotly_afterplot", () => {
      markStep(graph, shared.shownStep(), "chosen");
      // Beyond a figure that became narrower it would make the page wider.
      markStep(graph, null, "hovered");
      shared.drawn(graph, true);
      shared.followZoom(graph);
    });
    markStep(graph, shared.shownStep(), "chosen");
    shared.unsync(graph);
    shared.followZoom(graph);
    drag(graph);
  };

  function choose(graph, point) {
    const step = stepOf(graph, point);
    if (step == null || Number.isNaN(step)) return;
    shared.showStep(step);
    shared.commitStep();
    const layer = point.fullData.type === "heatmap" ? layerOf(point) : null;
    if (layer && window.location.pathname === "/flow") shared.chooseLayer(layer);
  }

  /** In the overview the step is dragged in the heatmap itself. */
  function drag(graph) {
    if (keyOf(graph) !== "overview") return;
    const stepAt = (event) => {
      const box = graph.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      for (const { axis, plot, isX } of stepAxes(graph)) {
        const other = isX ? plot.yaxis : plot.xaxis;
        const along = isX ? x : y, across = isX ? y : x;
        const inside = across >= other._offset && across <= other._offset + other._length;
        const at = along - axis._offset;
        if (inside && at >= 0 && at <= axis._length) return axis.p2d(at);
      }
      return null;
    };
    let dragging = false;
    graph.addEventListener("pointerdown", (event) => {
      const step = event.button === 0 ? stepAt(event) : null;
      if (step == null || event.target.closest(".modebar")) return;
      dragging = true;
      shared.showStep(step);
    }, true);
    window.addEventListener("pointermove", (event) => {
      const step = dragging ? stepAt(event) : null;
      if (step != null) shared.showStep(step);
    });
    window.addEventListener("pointerup", () => {
      if (dragging) shared.commitStep();
      dragging = false;
    });
  }

  shared.show.push((step) => everywhere(step, "chosen"));
})();
