'use strict';
(async () => {
  // Without this, the static twins, the captions and the tables are the whole report.
  if (typeof DecompressionStream === 'undefined') return;
  const text = (id) => document.getElementById(id).textContent.trim();
  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(text(id)), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).text();
  };

  const [source, packed] = await Promise.all([unpacked('plotly-js'), unpacked('figures')]);
  const script = document.createElement('script');
  script.textContent = source;
  document.head.appendChild(script);
  if (typeof Plotly === 'undefined') return;
  const figures = JSON.parse(packed);

  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const themed = (name) => {
    const figure = structuredClone(figures[name].light);
    for (const [path, value] of dark.matches ? figures[name].dark : []) {
      const last = path[path.length - 1];
      path.slice(0, -1).reduce((inner, key) => inner[key], figure)[last] = value;
    }
    return figure;
  };
  const config = {
    responsive: true,
    displaylogo: false,
    typesetMath: false,
    toImageButtonOptions: {format: 'svg'},
  };

  const draw = async (plot) => {
    const figure = themed(plot.dataset.figure);
    const box = plot.closest('figure');
    box.classList.add('drawn');
    try {
      await Plotly.react(plot, figure.data, figure.layout, config);
      plot.dataset.state = 'drawn';
    } catch (error) {
      box.classList.remove('drawn');
      plot.dataset.state = 'failed';
    }
  };

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      observer.unobserve(entry.target);
      draw(entry.target.querySelector('.plot'));
    }
  }, {rootMargin: '400px'});
  const [first, ...others] = document.querySelectorAll('figure');
  if (first) draw(first.querySelector('.plot'));
  others.forEach((figure) => observer.observe(figure));
  dark.addEventListener('change', () => {
    document.querySelectorAll('.drawn .plot').forEach((plot) => draw(plot));
  });

  let tables = null;
  for (const button of document.querySelectorAll('button.csv')) {
    button.hidden = false;
    button.addEventListener('click', async () => {
      tables = tables || JSON.parse(await unpacked('csv'));
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([tables[button.dataset.csv]], {type: 'text/csv'}));
      link.download = `${button.dataset.csv}.csv`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
