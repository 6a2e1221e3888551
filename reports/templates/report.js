'use strict';
(async () => {
  // Without this, the static figures, the captions and the tables are the whole report.
  if (typeof DecompressionStream === 'undefined') return;
  const text = (id) => document.getElementById(id).textContent.trim();
  const bytesOf = (coded) => Uint8Array.from(atob(coded), (letter) => letter.charCodeAt(0));
  const unpacked = async (id) => {
    const stream = new Blob([bytesOf(text(id))]).stream();
    return new Response(stream.pipeThrough(new DecompressionStream('gzip'))).text();
  };

  const [source, packed] = await Promise.all([unpacked('plotly-js'), unpacked('figures')]);
  const script = document.createElement('script');
  script.textContent = source;
  document.head.appendChild(script);
  if (typeof Plotly === 'undefined') return;
  const {figures, arrays} = JSON.parse(packed);

  // First bytes stand together, then second bytes, and so on: they compress better.
  const restored = (place, size) => {
    const planes = bytesOf(arrays[place]);
    const bytes = new Uint8Array(planes.length);
    const count = planes.length / size;
    for (let i = 0; i < bytes.length; i++) bytes[i] = planes[(i % size) * count + Math.floor(i / size)];
    return bytes.buffer;
  };
  const withArrays = (value) => {
    if (value === null || typeof value !== 'object') return value;
    if (Array.isArray(value)) return value.map(withArrays);
    const copy = {};
    for (const key of Object.keys(value)) copy[key] = withArrays(value[key]);
    if (copy.customdata === 'powers') {
      const {bdata, dtype, shape} = copy.z;
      const logs = dtype === 'f4' ? new Float32Array(bdata) : new Float64Array(bdata);
      const plain = Float64Array.from(logs, (log) => 10 ** log);
      copy.customdata = {dtype: 'f8', bdata: plain.buffer, shape};
    }
    if (typeof copy.bdata === 'number') copy.bdata = restored(copy.bdata, Number(copy.dtype.slice(1)));
    return copy;
  };

  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  const narrow = window.matchMedia('(max-width: 40em)');
  const themed = (name) => {
    const figure = withArrays(figures[name].light);
    const looks = [dark.matches && 'dark', narrow.matches && 'narrow', dark.matches && narrow.matches && 'both'];
    for (const [path, value] of looks.filter(Boolean).flatMap((look) => figures[name][look])) {
      const last = path[path.length - 1];
      path.slice(0, -1).reduce((inner, key) => inner[key], figure)[last] = withArrays(value);
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
  if (first) await draw(first.querySelector('.plot'));
  others.forEach((figure) => observer.observe(figure));
  for (const look of [dark, narrow]) {
    look.addEventListener('change', () => {
      document.querySelectorAll('.drawn .plot').forEach((plot) => draw(plot));
    });
  }

  let data = null;
  const csvOf = async (name) => {
    data = data || JSON.parse(await unpacked('csv'));
    const columns = data.tables[name].map(([head, place]) => [head, ...data.columns[place]]);
    return columns[0].map((_, row) => columns.map((cells) => cells[row]).join(',') + '\n').join('');
  };
  for (const button of document.querySelectorAll('button.csv')) {
    button.hidden = false;
    button.addEventListener('click', async () => {
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([await csvOf(button.dataset.csv)], {type: 'text/csv'}));
      link.download = `${button.dataset.csv}.csv`;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }
})();
