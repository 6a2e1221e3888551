// The traces that figures may draw; plotly.js itself knows `scatter`. `paper_traces.DRAWERS` draws those in use.
const Plotly = require('plotly.js/lib/core');

Plotly.register([
  require('plotly.js/lib/bar'),
  require('plotly.js/lib/contour'),
  require('plotly.js/lib/heatmap'),
  require('plotly.js/lib/histogram'),
  require('plotly.js/lib/scatter3d'),
  require('plotly.js/lib/surface'),
]);

module.exports = Plotly;
