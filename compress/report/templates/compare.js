"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const plot = document.getElementById("plot");
  const said = document.getElementById("front");
  const axes = { x: document.getElementById("axis-x"), y: document.getElementById("axis-y") };
  const rows = [...document.querySelectorAll("#table tbody tr")];
  const tip = plot.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;

  const measure = (axis) => data.measures.find((one) => one.name === axes[axis].value);
  const listed = (names) =>
    names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;

  function element(name, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // Ticks at 1, 2 or 5 times a power of ten, about `count` of them, around all values.
  function scale(values, count) {
    const low = Math.min(...values), high = Math.max(...values);
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    const raw = (high - low + 2 * room) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= raw);
    const first = Math.floor((low - room) / step), last = Math.ceil((high + room) / step);
    const start = low >= 0 ? Math.max(first, 0) : first;
    const ticks = Array.from({ length: last - start + 1 }, (_, i) => (start + i) * step);
    return { ticks, step, low: ticks[0], high: ticks.at(-1) };
  }

  // A tick in the unit of its axis: as many decimals as the step has.
  function told(unit, value, step) {
    const shrink = { bytes: 1e6, share: 0.01, seconds: 0.001 }[unit] || 1;
    const decimals = Math.max(0, -Math.floor(Math.log10(step / shrink) + 1e-9));
    return (value / shrink).toFixed(Math.min(decimals, 6));
  }

  function titled(one) {
    const unit = { bytes: "MB", share: "%", seconds: "ms" }[one.unit] || one.unit;
    const wish = one.better === "low" ? "less is better" : "more is better";
    return `${one.label}${unit && unit !== "bits" ? `, ${unit}` : ""} (${wish})`;
  }

  function beats(one, other, measures) {
    const gaps = measures.map((m) =>
      (m.better === "low" ? 1 : -1) * (other.values[m.name] - one.values[m.name]));
    return Math.min(...gaps) >= 0 && Math.max(...gaps) > 0;
  }

  // Between two points of the front nobody was measured: what the last one gave holds until the next.
  function steps(places, towardsLow) {
    const step = ([x, y]) => (towardsLow ? `H${x}V${y}` : `V${y}H${x}`);
    return `M${places[0].join(" ")}${places.slice(1).map(step).join("")}`;
  }

  function show(point, at, measures) {
    const name = document.createElement("b");
    name.textContent = point.name;
    const lines = measures.map((m) => {
      const line = document.createElement("span");
      line.textContent = `${m.label} ${point.texts[m.name]}`;
      return line;
    });
    tip.replaceChildren(name, ...lines);
    tip.hidden = false;
    const ratio = plot.clientWidth / at.width;
    const left = Math.min(at.x * ratio + 14, plot.clientWidth - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    const above = at.y * ratio - tip.offsetHeight - 14;
    tip.style.top = `${above < 0 ? at.y * ratio + 16 : above}px`;
  }

  function pick(index) {
    const row = document.getElementById(`artifact-${index}`);
    for (const other of rows) other.classList.toggle("picked", other === row);
    row.scrollIntoView({ block: "center" });
    row.focus({ preventScroll: true });
  }

  // Both ends of a name that is too long: what tells it from others stands at either.
  function short(name, most) {
    const half = (most - 1) / 2;
    return name.length > most ? `${name.slice(0, Math.ceil(half))}…${name.slice(-Math.floor(half))}` : name;
  }

  // Beside its point, where no other name stands yet.
  function placed(text, x, y, room, taken) {
    const wide = text.length * 7.4 + 4;
    const spots = [[10, 4, "start"], [-10, 4, "end"], [0, -12, "middle"], [0, 22, "middle"],
      [10, -12, "start"], [10, 20, "start"], [-10, -12, "end"], [-10, 20, "end"],
      [0, -28, "middle"], [-10, -28, "end"], [10, -28, "start"], [0, 38, "middle"],
      [0, -44, "middle"], [-10, -44, "end"], [10, -44, "start"]];
    const boxes = spots.map(([dx, dy, anchor]) => {
      const from = x + dx - { start: 0, end: wide, middle: wide / 2 }[anchor];
      return { dx, dy, anchor, left: from, right: from + wide, top: y + dy - 12, bottom: y + dy + 4 };
    });
    const inside = boxes.filter((box) =>
      box.left >= room.left && box.right <= room.right && box.bottom <= room.bottom);
    const free = inside.find((box) => !taken.some((other) =>
      box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom));
    const box = free || inside[0] || boxes[0];
    taken.push(box);
    return box;
  }

  function draw() {
    tip.hidden = true;
    const measures = [measure("x"), measure("y")];
    const [mx, my] = measures;
    const points = data.points
      .map((point, index) => ({ ...point, index }))
      .filter((point) => measures.every((m) => m.name in point.values));
    const narrow = plot.clientWidth < 560;
    const width = narrow ? Math.max(plot.clientWidth, 300) : Math.max(plot.clientWidth, 620);
    const height = narrow ? 360 : 460;
    const left = 56, right = 16, top = 34, bottom = 54;
    plot.querySelector("svg")?.remove();
    if (!points.length) {
      said.textContent = "No artifact has both numbers.";
      return;
    }
    const sx = scale(points.map((p) => p.values[mx.name]), narrow ? 4 : 8);
    const sy = scale(points.map((p) => p.values[my.name]), 6);
    const atX = (v) => left + (width - left - right) * (v - sx.low) / (sx.high - sx.low);
    const atY = (v) => height - bottom - (height - top - bottom) * (v - sy.low) / (sy.high - sy.low);
    const front = points.filter((p) => !points.some((other) => beats(other, p, measures)));
    const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "group",
      "aria-label": `${my.label} against ${mx.label}, ${points.length} artifacts` });
    for (const tick of sx.ticks) {
      svg.append(element("line", { class: "grid", x1: atX(tick), x2: atX(tick), y1: top, y2: height - bottom }),
        element("text", { x: atX(tick), y: height - bottom + 20, "text-anchor": "middle", "aria-hidden": "true" },
          told(mx.unit, tick, sx.step)));
    }
    for (const tick of sy.ticks) {
      svg.append(element("line", { class: "grid", x1: left, x2: width - right, y1: atY(tick), y2: atY(tick) }),
        element("text", { x: left - 8, y: atY(tick) + 4, "text-anchor": "end", "aria-hidden": "true" },
          told(my.unit, tick, sy.step)));
    }
    svg.append(
      element("text", { x: width - right, y: height - 10, "text-anchor": "end", "aria-hidden": "true" }, titled(mx)),
      element("text", { x: 0, y: 14, "aria-hidden": "true" }, titled(my)));
    const along = [...front].sort((a, b) => a.values[mx.name] - b.values[mx.name]);
    if (along.length > 1) {
      const places = along.map((p) => [atX(p.values[mx.name]), atY(p.values[my.name])]);
      svg.append(element("path", { class: "front", d: steps(places, mx.better === "low") }));
    }
    const taken = points.map((p) => {
      const x = atX(p.values[mx.name]), y = atY(p.values[my.name]);
      return { left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 };
    });
    for (const point of points) {
      const x = atX(point.values[mx.name]), y = atY(point.values[my.name]);
      const on = front.includes(point);
      const numbers = measures.map((m) => `${m.label} ${point.texts[m.name].trim()}`).join(", ");
      const name = short(point.name, narrow ? 22 : 32);
      const spot = placed(name, x, y, { left, right: width, bottom: height - bottom }, taken);
      const link = element("a", { class: on ? "point on" : "point", href: `#artifact-${point.index}`,
        "aria-label": `${point.name}: ${numbers}${on ? "; on the front" : ""}` },
        element("circle", { class: "hit", cx: x, cy: y, r: 14 }),
        element("circle", { cx: x, cy: y, r: 6 }),
        element("text", { x: x + spot.dx, y: y + spot.dy, "text-anchor": spot.anchor }, name));
      for (const kind of ["mouseenter", "focus"]) link.addEventListener(kind, () => show(point, { x, y, width }, measures));
      for (const kind of ["mouseleave", "blur"]) link.addEventListener(kind, () => { tip.hidden = true; });
      link.addEventListener("click", (event) => { event.preventDefault(); pick(point.index); });
      svg.append(link);
    }
    plot.prepend(svg);
    const missing = data.points.filter((p) => !points.some((other) => other.name === p.name));
    said.textContent = `On the front: ${listed(along.map((p) => p.name))}.`
      + (missing.length ? ` Without one of the two numbers: ${listed(missing.map((p) => p.name))}.` : "");
  }

  function sort(header, column) {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.children[column].dataset.value;
    const order = (a, b) => (column ? Number(a) - Number(b) : a.localeCompare(b)) * (up ? 1 : -1);
    const known = rows.filter((row) => value(row) !== undefined);
    known.sort((a, b) => order(value(a), value(b)));
    const unknown = rows.filter((row) => value(row) === undefined);
    rows[0].parentElement.append(...known, ...unknown);
  }

  for (const axis of Object.values(axes)) axis.addEventListener("change", draw);
  document.querySelectorAll("#table thead th").forEach((header, column) =>
    header.querySelector("button").addEventListener("click", () => sort(header, column)));
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  let width = 0;
  new ResizeObserver(() => {
    if (plot.clientWidth !== width) { width = plot.clientWidth; draw(); }
  }).observe(plot);
  width = plot.clientWidth;
  draw();
})();
