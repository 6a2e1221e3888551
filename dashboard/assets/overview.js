"use strict";
/* What a step changes of the overview, from numbers that are in the page already: drawn over
   the figure, since plotly takes 100 ms to draw it again. The server's figure follows. */
(function () {
  const shared = window.gradientflow;

  function decoded(packed) {
    const raw = Uint8Array.from(atob(packed.bdata), (letter) => letter.charCodeAt(0));
    return new Int16Array(raw.buffer);
  }

  /** Norms of one run at a step: a number, null for none, NaN where it was not finite. */
  function normsAt(run, frames, step) {
    run.decoded = run.decoded || decoded(run.norms);
    const rows = run.norms.shape[1], at = shared.nearest(run.steps, step);
    return Array.from(run.decoded.subarray(at * rows, (at + 1) * rows), (n) => {
      if (n === frames.no_value) return null;
      if (n === frames.zero) return 0;
      return n === frames.nonfinite ? NaN : 10 ** (run.norms.offset + run.norms.scale * n);
    });
  }

  const SVG = "http://www.w3.org/2000/svg";
  let wanted = null, cover = null;

  function element(name, attributes, parent) {
    const made = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    parent.appendChild(made);
    return made;
  }

  /** Axes of a trace, and a part of the cover that is as large as its plot. */
  function plotOf(graph, trace) {
    const axis = (id) => graph._fullLayout[id.charAt(0) + "axis" + id.slice(1)];
    const x = axis(trace.xaxis), y = axis(trace.yaxis);
    const at = { x: x._offset, y: y._offset, width: x._length, height: y._length };
    return { x, y, box: element("svg", Object.assign(at, { overflow: "hidden" }), cover) };
  }

  const DASHES = { dash: "9,9", dot: "3,3", dashdot: "9,3,3,3", longdash: "12,6" };

  function stroke(line) {
    const pattern = /^[\d.]+px/.test(line.dash) ? line.dash.replace(/px/g, "") : DASHES[line.dash];
    const look = { fill: "none", stroke: line.color, "stroke-width": line.width };
    return pattern ? Object.assign(look, { "stroke-dasharray": pattern }) : look;
  }

  function pathOf(plot, xs, ys) {
    let path = "", pen = "M";
    xs.forEach((x, at) => {
      const y = plot.y.d2p(ys[at]);
      if (!Number.isFinite(x) || !Number.isFinite(ys[at]) || !Number.isFinite(y)) {
        pen = "M";
        return;
      }
      path += `${pen}${plot.x.d2p(x).toFixed(1)},${y.toFixed(1)}`;
      pen = "L";
    });
    return path;
  }

  function drawLine(graph, place, run, norms) {
    const trace = graph._fullData[place], plot = plotOf(graph, trace);
    const path = pathOf(plot, run.positions, norms);
    element("path", Object.assign({ d: path }, stroke(trace.line)), plot.box);
    if (!trace.mode.includes("markers")) return;
    const point = groupOf(graph, trace)?.querySelector(".point")?.getAttribute("d");
    run.positions.forEach((x, at) => {
      const y = norms[at];
      if (!(y > 0) || !Number.isFinite(y)) return;
      const move = `translate(${plot.x.d2p(x).toFixed(1)},${plot.y.d2p(y).toFixed(1)})`;
      const look = { d: point || "M3,0A3,3 0 1,1 0,-3A3,3 0 0,1 3,0Z", transform: move };
      element("path", Object.assign(look, { fill: trace.line.color }), plot.box);
    });
  }

  /** Arcs by trace: five levels of identities, five of other shortcuts, one of unknown share. */
  function drawArcs(graph, run, frames, step) {
    if (!run.shares.length || !run.arc_traces.length) return;
    const shares = run.shares[shared.nearest(run.share_steps, step)];
    const plot = plotOf(graph, graph._fullData[run.arc_traces[0]]);
    run.arcs.forEach((arc, at) => {
      const share = shares[at];
      const level = share == null ? -1 : frames.levels.filter((edge) => share >= edge).length;
      const place = level < 0 ? 10 : level + (arc.is_identity ? 0 : 5);
      const trace = graph._fullData[run.arc_traces[place]];
      const look = stroke(trace.line);
      if (trace.fill === "toself") look.fill = trace.fillcolor;
      element("path", Object.assign({ d: pathOf(plot, arc.x, arc.y) }, look), plot.box);
    });
  }

  /** The lines in rows 3 and 4 that say which step is shown. */
  function drawStep(graph, run, step) {
    run.step_shapes.forEach((place, at) => {
      const shape = graph._fullLayout.shapes[place];
      const [xref, yref] = [shape.xref, shape.yref].map((ref) => ref.replace(" domain", ""));
      const plot = plotOf(graph, { xaxis: xref, yaxis: yref });
      const isAcross = shape.xref.endsWith(" domain");
      const along = isAcross ? plot.y.d2p(step) : plot.x.d2p(step);
      const ends = isAcross
        ? { x1: 0, x2: plot.x._length, y1: along, y2: along }
        : { x1: along, x2: along, y1: 0, y2: plot.y._length };
      element("line", Object.assign(ends, stroke(shape.line)), plot.box);
      if (!isAcross || at) return;
      const x = plot.x._offset + plot.x._length, y = plot.y._offset + along;
      const fill = graph._fullData[run.handle_trace].marker.color;
      element("path", { d: `M${x - 7},${y}l12,-7v14Z`, fill }, cover);
    });
    const words = graph.querySelector(`.annotation[data-index="${run.step_words}"]`);
    const walk = words && document.createTreeWalker(words, NodeFilter.SHOW_TEXT);
    while (walk && walk.nextNode()) {
      const text = walk.currentNode;
      text.data = text.data.replace(/at step [\d,]+( and [\d,]+)?/, `at step ${step.toLocaleString("en")}`);
    }
  }

  const groupOf = (graph, trace) => graph.querySelector(`g.trace${CSS.escape(trace.uid)}`);

  /** Hide what the cover shows instead; or show it again. */
  function hide(graph, frames, isHidden) {
    const value = isHidden ? "hidden" : "";
    frames.runs.forEach((run) => {
      const moving = [run.profile_trace, run.mark_trace, run.handle_trace];
      if (run.shares.length) moving.push(...run.arc_traces);
      moving.forEach((place) => {
        const group = groupOf(graph, graph._fullData[place]);
        if (group) group.style.visibility = value;
      });
      run.step_shapes.forEach((place) => {
        graph.querySelectorAll(`.shapelayer [data-index="${place}"]`).forEach((one) => {
          one.style.visibility = value;
        });
      });
    });
  }

  function clear(graph) {
    if (cover) cover.remove();
    cover = null;
    if (graph && shared.overview) hide(graph, shared.overview, false);
  }

  function drawMarks(graph, run, frames, norms) {
    const trace = graph._fullData[run.mark_trace], plot = plotOf(graph, trace);
    norms.forEach((norm, at) => {
      if (norm === null || norm > 0) return;
      const x = plot.x.d2p(run.positions[at]), y = norm === 0 ? plot.y._length - 6 : 0;
      const color = trace.meta.rug[norm === 0 ? "zero" : "nonfinite"];
      element("path", { d: `M${x},${y}v6`, stroke: color, "stroke-width": 2 }, plot.box);
    });
  }

  function next() {
    const graph = shared.graphOf("overview"), frames = shared.overview, step = wanted;
    if (step == null || !graph || !frames || !graph._fullData) return;
    if (frames.runs.some((run) => !graph._fullData[run.mark_trace])) return;
    wanted = null;
    const began = performance.now();
    if (!cover && shows(graph, frames, step)) return;
    if (cover) cover.remove();
    cover = element("svg", { class: "overview-cover", "aria-hidden": "true" }, graph.parentElement);
    hide(graph, frames, true);
    frames.runs.forEach((run) => {
      drawArcs(graph, run, frames, step);
      drawStep(graph, run, run.steps[shared.nearest(run.steps, step)]);
    });
    frames.runs.forEach((run) => {
      const norms = normsAt(run, frames, step);
      drawLine(graph, run.profile_trace, run, norms);
      drawMarks(graph, run, frames, norms);
    });
    graph.dataset.step = String(step);
    shared.lastFrame = performance.now() - began;
  }

  /** A step is offered as long as another one is shown. */
  shared.offer = (step) => {
    document.querySelectorAll("[data-to-step]").forEach((one) => {
      one.hidden = Number(one.dataset.toStep) === step;
    });
  };

  shared.show.push((step) => {
    wanted = step;
    window.requestAnimationFrame(next);
  });
  /** Whether the figure below the cover shows a step already. */
  function shows(graph, frames, step) {
    const run = frames.runs[0], shape = (graph._fullLayout.shapes || [])[run.step_shapes[0]];
    return Boolean(shape) && shared.nearest(run.steps, shape.y0) === shared.nearest(run.steps, step);
  }

  /** The cover goes when the figure shows the step; it moves with a figure that was drawn again. */
  shared.drawn = (graph, isNew) => {
    const frames = shared.overview, step = shared.shownStep();
    if (!cover || !frames || step == null || graph !== shared.graphOf("overview") || !graph._fullLayout) return;
    if (shows(graph, frames, step)) clear(graph);
    else if (isNew) {
      wanted = step;
      window.requestAnimationFrame(next);
    }
  };
})();
