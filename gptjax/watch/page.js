// Draws the charts of a page of `gptjax watch`, and asks its server for news. Text comes from Python as escaped HTML; what
// is made here is made of text nodes and numbers.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const look = { logX: null, logY: false, zoom: {}, hidden: new Set() }; // logX null: as each chart says; zoom: by axis label
const TALL = 320, LOW = 190;
const LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 34;
const SVG = "http://www.w3.org/2000/svg";

function made(tag, attributes = {}, text = null) {
  const svg = ["svg", "path", "line", "circle", "rect", "text"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null) node.textContent = text;
  return node;
}

// ---- numbers

function shown(value, label = "") {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (label === "FLOPs" || size >= 1e15 || size < 1e-3) return (+value.toPrecision(3)).toExponential().replace("e+", "e");
  for (const [unit, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
    if (size >= unit && size >= 1e4) return `${+(value / unit).toPrecision(4)}${suffix}`;
  return `${+value.toPrecision(5)}`;
}

function ticks(low, high, most, log) {
  if (log && high / low > 3) {
    for (const digits of [[1, 2, 5], [1, 3], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
        for (const digit of digits) {
          const value = +`${digit}e${power}`;
          if (value >= low && value <= high) found.push(value);
        }
      if (found.length <= most) return found;
      if (digits.length === 1) return found.filter((_, i) => i % Math.ceil(found.length / most) === 0);
    }
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) found.push(+(i * step).toPrecision(12));
  return found;
}

function scale(low, high, from, to, log) {
  const at = log ? Math.log : (value) => value;
  const ratio = (to - from) / (at(high) - at(low) || 1);
  const place = (value) => from + (at(value) - at(low)) * ratio;
  place.back = (pixel) => (log ? Math.exp : (value) => value)((pixel - from) / ratio + at(low));
  return place;
}

// ---- one chart

function visible(chart) {
  return chart.series.filter((one) => !look.hidden.has(`${chart.id} ${one.group || one.name}`));
}

// A little more than all points, where they are single ones or none is beside another.
function aroundAll(low, high, log, single) {
  if (!single && low < high) return [low, high];
  if (log) return [low / Math.max(1.1, (high / low) ** 0.05), high * Math.max(1.1, (high / low) ** 0.05)];
  return [low - Math.max(1, (high - low) * 0.05), high + Math.max(1, (high - low) * 0.05)];
}

function ranges(chart) {
  const logX = look.logX ?? Boolean(chart.log_x), logY = look.logY;
  const zoom = look.zoom[chart.x_label];
  let xs = [], low = Infinity, high = -Infinity;
  for (const one of chart.series) {
    for (const x of [...one.x, ...(one.bad || [])]) if (!logX || x > 0) xs.push(x);
  }
  const all = xs.reduce(([a, b], x) => [Math.min(a, x), Math.max(b, x)], [Infinity, -Infinity]);
  const [x0, x1] = zoom || aroundAll(...all, logX, chart.series.every((one) => one.x.length < 2));
  for (const one of visible(chart)) {
    one.x.forEach((x, i) => {
      if (x < x0 || x > x1) return;
      const spread = one.error && one.error.length ? one.error[i] : 0;
      const bottom = one.lo ? one.lo[i] : one.y[i] - spread, top = one.hi ? one.hi[i] : one.y[i] + spread;
      if (!logY || bottom > 0) low = Math.min(low, bottom);
      high = Math.max(high, top);
    });
  }
  if (low > high) [low, high] = logY ? [0.1, 1] : [0, 1];
  if (chart.from_zero && !logY) low = Math.min(low, 0);
  const pad = logY ? (high / low || 1) ** 0.05 : (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  const [y0, y1] = logY ? [low / Math.max(pad, 1.02), high * Math.max(pad, 1.02)] : [chart.from_zero && low === 0 ? 0 : low - pad, high + pad];
  return { x0, x1, y0, y1, logX, logY };
}

function path(one, x, y, inside) {
  let words = "", pen = "M";
  one.x.forEach((at, i) => {
    if (!inside(at, one.y[i])) return;
    words += `${pen}${x(at).toFixed(1)} ${y(one.y[i]).toFixed(1)}`;
    pen = "L";
  });
  return words;
}

function band(one, x, y, inside) {
  const kept = one.x.map((_, i) => i).filter((i) => inside(one.x[i], one.lo[i]));
  const there = kept.map((i) => `${x(one.x[i]).toFixed(1)} ${y(one.hi[i]).toFixed(1)}`);
  const back = kept.reverse().map((i) => `${x(one.x[i]).toFixed(1)} ${y(one.lo[i]).toFixed(1)}`);
  return kept.length ? `M${[...there, ...back].join("L")}Z` : "";
}

function drawSeries(svg, one, x, y, inside, top) {
  const clip = { "clip-path": "inset(0)" };
  if (one.lo) svg.append(made("path", { d: band(one, x, y, inside), fill: one.colour, opacity: 0.25, ...clip }));
  if (one.x.length > 1) svg.append(made("path", { d: path(one, x, y, inside), fill: "none", stroke: one.colour, "stroke-width": 1.4, "stroke-linejoin": "round" }));
  if (one.kind === "dots" || one.x.length === 1) {
    one.x.forEach((at, i) => {
      if (!inside(at, one.y[i])) return;
      if (one.error && one.error.length && inside(at, one.y[i] - one.error[i]))
        svg.append(made("line", { x1: x(at), x2: x(at), y1: y(one.y[i] - one.error[i]), y2: y(one.y[i] + one.error[i]), stroke: one.colour, "stroke-width": 2.5, opacity: 0.6 }));
      svg.append(made("circle", { cx: x(at), cy: y(one.y[i]), r: one.x.length > 100 ? 1.5 : 3, fill: one.colour }));
    });
  }
  for (const at of one.bad || [])
    if (inside(at)) svg.append(made("line", { class: "not-finite", x1: x(at), x2: x(at), y1: top, y2: top + 8, "stroke-width": 2 }));
}

function draw(chart, box) {
  const width = Math.max(260, box.clientWidth), height = chart.wide ? TALL : LOW;
  const { x0, x1, y0, y1, logX, logY } = ranges(chart);
  const x = scale(x0, x1, LEFT, width - RIGHT, logX), y = scale(y0, y1, height - BOTTOM, TOP, logY);
  const inside = (at, value = y1) => at >= x0 && at <= x1 && (!logX || at > 0) && (!logY || value > 0);
  const svg = made("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.title });
  for (const value of ticks(y0, y1, chart.wide ? 6 : 4, logY)) {
    svg.append(made("line", { class: "axis", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    svg.append(made("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, shown(value)));
  }
  for (const value of ticks(x0, x1, Math.max(2, Math.floor((width - LEFT) / 70)), logX))
    svg.append(made("text", { x: x(value), y: height - BOTTOM + 15, "text-anchor": "middle" }, shown(value, chart.x_label)));
  svg.append(made("text", { x: width - RIGHT, y: height - 4, "text-anchor": "end" }, chart.x_label));
  if (chart.x_label === "step")
    for (const mark of data.marks)
      if (inside(mark.x)) svg.append(made("line", { class: mark.bad ? "mark bad" : "mark", x1: x(mark.x), x2: x(mark.x), y1: TOP, y2: height - BOTTOM }));
  for (const one of visible(chart)) drawSeries(svg, one, x, y, inside, TOP);
  box.querySelector("svg")?.remove();
  box.querySelector("h3").after(svg);
  pointer(chart, box, svg, x, y, inside, width, height);
}

function legend(chart, box) {
  const groups = new Map(chart.series.map((one) => [one.group || one.name, one.colour]));
  if (groups.size < 2) return;
  const list = made("div", { class: "legend" });
  for (const [name, colour] of groups) {
    const key = `${chart.id} ${name}`;
    const button = made("button", { class: look.hidden.has(key) ? "hidden" : "", title: "show or hide" });
    button.append(made("span", { class: "swatch", style: `background:${colour}` }), name);
    button.onclick = () => {
      look.hidden.has(key) ? look.hidden.delete(key) : look.hidden.add(key);
      drawAll();
    };
    list.append(button);
  }
  box.append(list);
}

// ---- the pointer: values under it, and a zoom by dragging

function nearest(xs, value) {
  let best = 0;
  for (let i = 1; i < xs.length; i++) if (Math.abs(xs[i] - value) < Math.abs(xs[best] - value)) best = i;
  return best;
}

function under(chart, at, pixelX, pixelY, x, y, inside) {
  const found = visible(chart).filter((one) => one.x.length).map((one) => {
    const i = nearest(one.x, at);
    return { one, i, far: Math.hypot(x(one.x[i]) - pixelX, y(one.y[i]) - pixelY) };
  }).filter(({ one, i }) => inside(one.x[i], one.y[i]));
  if (found.length <= 6) return found.filter(({ one, i }) => Math.abs(x(one.x[i]) - pixelX) < 40);
  return found.sort((a, b) => a.far - b.far).slice(0, 1);
}

function words(chart, { one, i }) {
  const range = one.lo && one.lo[i] !== one.hi[i] ? ` (${shown(one.lo[i])} to ${shown(one.hi[i])})` : "";
  const error = one.error && one.error.length ? ` ± ${shown(one.error[i] / 2)}` : "";
  const at = chart.x_label === "step" ? one.x[i].toLocaleString("en") : shown(one.x[i], chart.x_label);
  return `${chart.x_label} ${at}: ${one.name} ${shown(one.y[i])}${error}${range}`;
}

function pointer(chart, box, svg, x, y, inside, width, height) {
  const cursor = made("line", { class: "cursor", y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
  const selection = made("rect", { class: "selection", y: TOP, height: height - TOP - BOTTOM, width: 0 });
  svg.append(selection, cursor);
  let from = null;
  const place = (event) => {
    const frame = svg.getBoundingClientRect();
    return [(event.clientX - frame.left) * (width / frame.width), event.clientY - frame.top];
  };
  svg.onpointermove = (event) => {
    const [pixelX, pixelY] = place(event);
    if (from !== null) {
      selection.setAttribute("x", Math.min(from, pixelX));
      selection.setAttribute("width", Math.abs(pixelX - from));
    }
    const lines = under(chart, x.back(pixelX), pixelX, pixelY, x, y, inside).map((found) => words(chart, found));
    if (chart.x_label === "step")
      lines.push(...data.marks.filter((mark) => inside(mark.x) && Math.abs(x(mark.x) - pixelX) < 4).slice(-3).map((mark) => `step ${mark.x}: ${mark.text}`));
    tip(box, lines, pixelX, event.clientY - box.getBoundingClientRect().top, width);
    cursor.setAttribute("x1", pixelX);
    cursor.setAttribute("x2", pixelX);
    cursor.setAttribute("visibility", "visible");
  };
  svg.onpointerleave = () => {
    tip(box, []);
    cursor.setAttribute("visibility", "hidden");
  };
  svg.onpointerdown = (event) => {
    if (event.pointerType !== "mouse") return;
    from = place(event)[0];
    svg.setPointerCapture(event.pointerId);
  };
  svg.onpointerup = (event) => {
    const to = place(event)[0];
    if (from !== null && Math.abs(to - from) > 8) {
      look.zoom[chart.x_label] = [x.back(Math.min(from, to)), x.back(Math.max(from, to))];
      drawAll();
    }
    from = null;
    selection.setAttribute("width", 0);
  };
  svg.ondblclick = resetZoom;
}

function tip(box, lines, left, top, width) {
  box.querySelector(".tip")?.remove();
  if (!lines.length) return;
  const node = made("div", { class: "tip" });
  for (const line of lines) node.append(made("div", {}, line));
  box.append(node);
  node.style.left = `${Math.max(0, Math.min(left + 12, width - node.offsetWidth))}px`;
  node.style.top = `${top + 14}px`;
}

function resetZoom() {
  look.zoom = {};
  drawAll();
}

// ---- all of it

function check(text, checked, change) {
  const label = made("label"), input = made("input", { type: "checkbox" });
  input.checked = checked;
  input.onchange = () => {
    change(input.checked);
    drawAll();
  };
  label.append(input, ` ${text}`);
  return label;
}

function drawAll() {
  const place = document.getElementById("charts");
  if (!place.firstChild && data.charts.length) {
    const controls = made("div", { class: "controls" });
    const reset = made("button", { id: "reset" }, "reset zoom");
    reset.onclick = resetZoom;
    controls.append(
      check("logarithmic x", data.charts.some((chart) => chart.log_x), (on) => (look.logX = on)),
      check("logarithmic y", false, (on) => (look.logY = on)),
      made("span", {}, "Drag over a chart to zoom in; point at it to read values."), reset,
    );
    place.append(controls, made("div", { class: "grid" }));
  }
  const grid = place.querySelector(".grid");
  if (!grid) return;
  document.getElementById("reset").hidden = !Object.keys(look.zoom).length;
  const boxes = data.charts.map((chart) => {
    const box = grid.querySelector(`[data-id="${CSS.escape(chart.id)}"]`) || made("div", { class: `chart${chart.wide ? " whole" : ""}`, "data-id": chart.id });
    if (!box.firstChild) box.append(made("h3", {}, chart.title));
    box.querySelector(".legend")?.remove();
    legend(chart, box);
    return box;
  });
  for (const old of [...grid.children]) if (!boxes.includes(old)) old.remove();
  boxes.forEach((box, i) => {
    if (grid.children[i] !== box) grid.insertBefore(box, grid.children[i] || null);
    draw(data.charts[i], box);
  });
}

let start = null, number = 0; // of the server, and of its last look that was shown here

async function newsSince(since) {
  const query = new URLSearchParams(location.search);
  query.set("since", since);
  const answer = await fetch(`/data?${query}`);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

async function askForNews() {
  try {
    let news = await newsSince(number);
    if (start !== null && news.start !== start) news = await newsSince(0); // the server was started again, and counts anew
    start = news.start;
    number = news.number;
    for (const [name, inner] of Object.entries(news.parts)) {
      const part = document.getElementById(name);
      if (part && part.innerHTML !== inner) part.innerHTML = inner;
    }
    const known = Object.fromEntries(data.charts.map((chart) => [chart.id, chart]));
    const changed = Object.keys(news.charts).length || news.marks.length !== data.marks.length || news.ids.length !== data.charts.length;
    const charts = news.ids.map((id) => news.charts[id] || known[id]);
    data.charts = charts.filter(Boolean);
    if (data.charts.length < charts.length) number = 0; // one is not known here: ask for all next time
    data.marks = news.marks;
    if (changed) drawAll();
    connection("");
  } catch (error) {
    connection(`No news from gptjax watch: ${error.message}`);
  }
  setTimeout(askForNews, 1000 * data.poll_seconds);
}

function connection(text) {
  const known = document.getElementById("connection");
  if (known) known.remove();
  if (text) document.body.prepend(made("p", { id: "connection", class: "notice" }, text));
}

drawAll();
let pending = null;
addEventListener("resize", () => {
  cancelAnimationFrame(pending);
  pending = requestAnimationFrame(drawAll);
});
if (data.poll_seconds) setTimeout(askForNews, 1000 * data.poll_seconds);
