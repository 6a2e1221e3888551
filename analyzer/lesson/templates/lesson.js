'use strict';
(async () => {
  // Without this, all texts are there; the figures are not.
  if (typeof DecompressionStream === 'undefined') return;
  const STORE = 'gradient-flow-lesson';
  const all = (query, inside = document) => [...inside.querySelectorAll(query)];
  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
    return new Response(stream).text();
  };

  // What was answered is kept in this browser, where it allows that.
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(STORE)) || {}; } catch (error) { kept = {}; }
  const keep = () => {
    try { localStorage.setItem(STORE, JSON.stringify(kept)); } catch (error) { /* not allowed here */ }
  };

  document.body.classList.add('js');
  const [source, packed] = await Promise.all([unpacked('plotly-js'), unpacked('lesson')]);
  const script = document.createElement('script');
  script.textContent = source;
  document.head.appendChild(script);
  const {scenes, palettes} = JSON.parse(packed);
  const dark = window.matchMedia('(prefers-color-scheme: dark)');

  const painted = (value, palette) => {
    if (typeof value === 'string') return value.startsWith('@') ? palette[value.slice(1)] : value;
    if (Array.isArray(value)) return value.map((item) => painted(item, palette));
    if (value === null || typeof value !== 'object') return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, painted(item, palette)]));
  };
  const layoutOf = (given, palette, isNarrow) => {
    const axis = {gridcolor: palette.grid, linecolor: palette.grid, zeroline: false, automargin: true};
    const layout = {
      height: 380, autosize: true, paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)',
      font: {size: 13, color: palette.text}, margin: {l: 64, r: 16, t: 40, b: 52},
      showlegend: true, legend: {orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom'}, hovermode: 'closest',
    };
    for (const key of Object.keys(given)) {
      layout[key] = /^[xy]axis/.test(key) ? {...axis, ...given[key]} : given[key];
    }
    if (isNarrow && layout.xaxis2) {
      // One below the other, where there is no room beside it.
      Object.assign(layout, {height: 560});
      layout.xaxis.domain = layout.xaxis2.domain = [0, 1];
      layout.yaxis.domain = [0.5, 1];
      layout.yaxis2.domain = [0, 0.32];
      layout.xaxis2.anchor = 'y2';
    }
    return layout;
  };

  const keyOf = (figure) => {
    if (figure.dataset.state) return figure.dataset.state;
    return scenes[figure.dataset.scene].controls.map((name) => {
      const [first, ...others] = all(`[data-control="${name}"]`, figure);
      if (first.type === 'range') return first.dataset.values.split('|')[first.value];
      return [first, ...others].find((one) => one.checked).value;
    }).join('|');
  };
  const config = {responsive: true, displayModeBar: false, typesetMath: false};
  const draw = (figure) => {
    const scene = scenes[figure.dataset.scene];
    const state = scene.states[keyOf(figure)];
    const palette = palettes[dark.matches ? 'dark' : 'light'];
    const plot = figure.querySelector('.plot');
    figure.querySelector('.state').textContent = state.text;
    for (const [name, value] of Object.entries(state.numbers)) {
      for (const place of all(`[data-number="${name}"]`, figure)) place.textContent = value;
    }
    if (state.numbers.arcs) arcs(figure, state.numbers.arcs, Number(state.numbers.block));
    // A copy: plotly writes into what it is given.
    const layout = layoutOf(structuredClone({...scene.layout, ...state.layout}), palette, plot.clientWidth < 560);
    const done = Plotly.react(plot, painted(state.data, palette), layout, config);
    figure.classList.add('drawn');
    return done.then(() => {
      if (figure.dataset.scene !== 'backward' || plot.dataset.listens) return;
      plot.dataset.listens = 'yes';
      plot.on('plotly_click', (event) => choose(figure, Number(event.points[0].x)));
    });
  };
  const choose = (figure, block) => {
    const slider = figure.querySelector('[data-control="block"]');
    if (!slider) return;
    slider.value = slider.dataset.values.split('|').indexOf(String(block));
    told(slider);
    draw(figure);
  };
  const arcs = (figure, shares, chosen) => {
    const svg = figure.querySelector('.blocks svg');
    if (!svg) return;
    const made = (name, attributes, parent) => {
      const element = document.createElementNS('http://www.w3.org/2000/svg', name);
      for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]);
      return parent.appendChild(element);
    };
    const room = 720 / shares.length;
    if (!svg.children.length) {
      shares.forEach((_, k) => {
        const group = made('g', {}, svg);
        const middle = (k + 0.5) * room;
        const [left, right] = [middle - 0.46 * room, middle + 0.46 * room];
        made('path', {d: `M ${left} 84 C ${left} 0, ${right} 0, ${right} 84`}, group);
        made('rect', {x: middle - 0.3 * room, y: 70, width: 0.6 * room, height: 28, rx: 4}, group);
        made('text', {x: middle, y: 89}, group).textContent = k + 1;
        // What is inside of the arch belongs to it.
        made('rect', {x: left, y: 0, width: right - left, height: 98, class: 'inside'}, group);
        group.addEventListener('click', () => choose(figure, k + 1));
      });
    }
    [...svg.children].forEach((group, k) => {
      group.setAttribute('class', k + 1 === chosen ? 'chosen' : 'other');
      // Most shares lie between a third and all: these differ to the eye.
      const width = 1 + 7 * Math.min(1, Math.max(0, (Math.abs(shares[k]) - 0.3) / 0.7));
      group.firstChild.setAttribute('stroke-width', width);
    });
  };
  const told = (slider) => {
    const shown = slider.dataset.shown.split('|')[slider.value];
    slider.setAttribute('aria-valuetext', shown);
    slider.parentElement.querySelector('output').textContent = shown;
  };
  const isShown = (figure) => figure.offsetParent !== null;
  const drawIn = (part) => all('.scene', part).filter(isShown).forEach(draw);

  for (const input of all('[data-control]')) {
    input.addEventListener('input', () => {
      if (input.type === 'range') told(input);
      draw(input.closest('.scene'));
    });
  }

  const isRight = (input) => input.dataset.right === 'yes';
  const answered = (box, place) => {
    const input = all('.choice input', box)[place];
    if (!input) return false;
    input.checked = true;
    all('.choice', box).forEach((label) => label.classList.remove('right', 'wrong'));
    const kind = isRight(input) ? 'right' : 'wrong';
    input.closest('.choice').classList.add(kind);
    const answer = box.querySelector('.answer');
    answer.className = `answer ${kind}`;
    answer.textContent = input.dataset.why;
    return kind === 'right';
  };
  const reveal = (step) => {
    step.querySelector('.seen').classList.add('shown');
    const right = all('.predict input', step).find(isRight);
    right.closest('.choice').classList.add('right');
    const answer = step.querySelector('.answer');
    if (!answer.textContent) {
      answer.className = 'answer';
      answer.textContent = right.dataset.why;
    }
    step.querySelector('.show').hidden = true;
    drawIn(step);
  };
  for (const step of all('.step')) {
    const name = `predict-${step.dataset.key}`;
    const button = step.querySelector('.show');
    button.hidden = false;
    button.addEventListener('click', () => reveal(step));
    all('.predict input', step).forEach((input, place) => input.addEventListener('change', () => {
      answered(step, place);
      kept[name] = place;
      keep();
      reveal(step);
    }));
    if (name in kept) {
      answered(step, kept[name]);
      reveal(step);
    }
  }
  const everything = document.getElementById('show-all');
  everything.hidden = false;
  everything.addEventListener('click', () => {
    all('.step').forEach(reveal);
    everything.disabled = true;
    everything.textContent = 'Every figure and answer is shown below';
  });

  const boxes = all('.question');
  const score = () => {
    const places = boxes.map((box) => kept[`question-${box.dataset.question}`]);
    const given = places.filter((place) => place !== undefined).length;
    const right = boxes.filter((box, k) => {
      const input = all('.choice input', box)[places[k]];
      return input && isRight(input);
    }).length;
    document.getElementById('score').textContent =
      `${right} of ${boxes.length} right, ${boxes.length - given} not answered yet.`;
    document.getElementById('again').hidden = given === 0;
  };
  const prove = (box) => {
    box.querySelector('.proof').classList.add('shown');
    drawIn(box);
  };
  for (const box of boxes) {
    const name = `question-${box.dataset.question}`;
    all('.choice input', box).forEach((input, place) => input.addEventListener('change', () => {
      answered(box, place);
      // The first answer counts; others may be tried.
      if (!(name in kept)) kept[name] = place;
      keep();
      score();
      prove(box);
    }));
    if (name in kept) {
      answered(box, kept[name]);
      prove(box);
    }
  }
  score();
  document.getElementById('again').addEventListener('click', () => {
    for (const box of boxes) {
      delete kept[`question-${box.dataset.question}`];
      all('input', box).forEach((input) => { if (input.closest('.choice')) input.checked = false; });
      all('.choice', box).forEach((label) => label.classList.remove('right', 'wrong'));
      box.querySelector('.answer').textContent = '';
      box.querySelector('.proof').classList.remove('shown');
    }
    keep();
    score();
  });

  const print = document.getElementById('print');
  print.hidden = false;
  print.addEventListener('click', () => {
    document.body.classList.add('takeaways-only');
    window.print();
  });
  // On paper nobody can predict first.
  window.addEventListener('beforeprint', () => all('.step').forEach(reveal));
  window.addEventListener('afterprint', () => document.body.classList.remove('takeaways-only'));
  dark.addEventListener('change', () => drawIn(document));
  let width = window.innerWidth;
  window.addEventListener('resize', () => {
    if ((width < 600) !== (window.innerWidth < 600)) drawIn(document);
    width = window.innerWidth;
  });
  document.documentElement.dataset.ready = 'yes';
})();
