"use strict";
/* The depth profile at the step under the cursor or slider, read off the heatmap beside it. */
(function () {
  const shared = window.gradientflow;
  let wanted = null, busy = false;

  /** New heights of the lines of the profile that have a heatmap of the same run and layers. */
  function heights(grid, profile, step) {
    const isLog = profile._fullLayout.yaxis.type === "log";
    const y = [], places = [];
    (grid._fullData || []).filter((trace) => trace.coloraxis).forEach((heat) => {
      // Rows stand at steps, or over epochs and time, or are moved on an axis of logarithms.
      const shift = (grid._fullLayout.meta || {}).shift || 0;
      const steps = (heat.meta || {}).steps || Array.from(heat.y, (at) => at - shift);
      const cells = heat.z[shared.nearest(steps, step)];
      const line = Array.from(cells, (cell) => {
        const value = isLog ? 10 ** cell : cell;
        return Number.isFinite(value) ? value : null;
      });
      const place = profile._fullData.findIndex(
        (trace) => trace.name === heat.name && trace.y && trace.y.length === line.length,
      );
      if (place < 0) return;
      places.push(profile._fullData[place].index);
      y.push(line);
    });
    return [y, places];
  }

  function next() {
    const grid = shared.graphOf("gradient_heatmap"), profile = shared.graphOf("depth_profile");
    if (wanted == null || busy || !grid || !profile || !profile._fullLayout) return;
    const step = wanted;
    wanted = null;
    const [y, places] = heights(grid, profile, step);
    if (!places.length) return;
    busy = true;
    const began = performance.now();
    shared.unsync(profile);
    window.Plotly.restyle(profile, { y }, places).then(() => {
      busy = false;
      shared.lastFrame = performance.now() - began;
      profile.dataset.step = String(step);
      window.requestAnimationFrame(next);
    });
  }

  function show(step) {
    wanted = step;
    window.requestAnimationFrame(next);
  }
  shared.show.push(show);
  shared.preview = (key, step) => {
    if (key !== "gradient_heatmap") return;
    const shown = step == null ? shared.shownStep() : step;
    if (shown != null) show(shown);
  };
})();
