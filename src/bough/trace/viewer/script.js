"use strict";
(() => {
  const doc = document.documentElement;
  addEventListener("error", event => { doc.dataset.error = event.message; });

  const data = JSON.parse(document.getElementById("trace").textContent);
  const $ = id => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  /** An HTML element with text or element children; text is never parsed as markup. */
  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter(child => child != null));
    return element;
  }
  function shape(tag, attributes = {}, parent = null) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (parent) parent.append(element);
    return element;
  }
  const facts = rows => rows.filter(([, value]) => value != null)
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  const count = n => n.toLocaleString("en");
  const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
  const fixed = (x, digits = 2) => x == null ? "–" : x.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−");
  const sum = list => list.reduce((total, x) => total + (x ?? 0), 0);
  // An endpoint may not say how likely a token was: then nobody knows how likely all of them are.
  const known = list => list.some(x => x == null) ? null : sum(list);
  const words = name => name.replace(/_/g, " ");
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

  // The tree ------------------------------------------------------------------------------------------------

  const nodes = data.nodes;          // parents before children; nodes[0] is the prompt
  const times = data.times;
  const end = times.length;          // `now` counts events: 0 is before the first, end after the last
  for (const [i, node] of nodes.entries()) {
    node.index = i;
    node.kids = [];
    node.up = node.parent == null ? null : nodes[node.parent];
    node.depth = node.up ? node.up.depth + 1 : 0;
    if (node.up) node.up.kids.push(node);
    node.text ??= (node.tokens ?? []).map(token => data.vocabulary[token]).join("");
    node.logprob = node.logprobs ? known(node.logprobs) : null;
    node.label = label(node);
    node.folded = false;
  }
  const root = nodes[0];
  const answer = data.answer == null ? null : nodes[data.answer];
  const answerPath = new Set(lineage(answer));
  for (let i = nodes.length - 1; i >= 0; i--) {
    nodes[i].size = 1 + sum(nodes[i].kids.map(kid => kid.size));
  }

  function lineage(node) {
    const path = [];
    for (; node; node = node.up) path.push(node);
    return path.reverse();
  }

  // The node that each event is about; the last event, the end of the run, is about the answer.
  const subject = Array(end).fill(answer ?? root);
  for (const node of nodes) {
    for (const [when] of [[node.when], ...(node.scores ?? []), ...(node.expansions ?? []), ...(node.pruned ? [node.pruned] : [])]) {
      subject[when] = node;
    }
    for (const when of node.selected ?? []) subject[when] = node;
  }
  for (const [when, index] of data.proposals) subject[when] = nodes[index];

  /** One line of at most 36 characters: whole answers keep their beginning and their end. */
  function label(node) {
    const text = node.text.trim().replace(/\s*\n\s*/g, " ↵ ").replace(/\s+/g, " ");
    if (!text) return node.unrecorded ? "(text not recorded)" : node.finish === "eos" ? "(end of text)" : "(empty)";
    const letters = Array.from(text);
    return letters.length <= 36 ? text : letters.slice(0, 17).join("") + " … " + letters.slice(-16).join("");
  }

  /** The last record that had happened at `now`. */
  function latest(records) {
    if (!records) return null;
    for (let i = records.length - 1; i >= 0; i--) if (records[i][0] < now) return records[i];
    return null;
  }
  const born = node => node.when < now || node === root;
  const isPruned = node => node.pruned != null && node.pruned[0] < now;
  const best = () => now >= end && data.finished ? answer : nodes[latest(data.proposals)?.[1]] ?? null;

  // What nodes are coloured by and labelled with.
  const metrics = {
    "score": { value: node => latest(node.scores)?.[1] ?? null, any: nodes.some(node => node.scores) },
    "cost f": { value: node => latest(node.expansions)?.[4] ?? null, any: hasCost(4), low: true },
    "cost g": { value: node => latest(node.expansions)?.[2] ?? null, any: hasCost(2), low: true },
    "cost h": { value: node => latest(node.expansions)?.[3] ?? null, any: hasCost(3), low: true },
    "log-probability per token": {
      value: node => node.logprob == null ? null : node.logprob / node.logprobs.length,
      any: nodes.some(node => node.logprobs),
    },
  };
  function hasCost(column) {
    return nodes.some(node => node.expansions?.some(row => row[column] != null));
  }
  let metric;
  function setMetric(name) {
    metric = metrics[name];
    const final = now;
    now = end;
    let low = Infinity, high = -Infinity;
    for (const node of nodes) {
      const value = metric.value(node);
      if (value != null) { low = Math.min(low, value); high = Math.max(high, value); }
    }
    now = final;
    if (low > high) [low, high] = [0, 1];
    else if (name === "score" && low >= 0 && high <= 1) [low, high] = [0, 1];
    else if (low === high) high = low + 1;
    Object.assign(metric, { name, from: low, to: high });
    drawLegend();
  }
  /** 0 (bad) to 6 (good); 7 where the node has no value. */
  function shade(node) {
    const value = metric.value(node);
    if (value == null) return 7;
    const part = clamp((value - metric.from) / (metric.to - metric.from), 0, 1);
    return Math.round(6 * (metric.low ? 1 - part : part));
  }

  // Layout: a tidy tree from left to right ---------------------------------------------------------------------

  const ROW = 34, HEIGHT = 26, GUTTER = 60, LETTER = letterWidth(), VALUE = 76;
  let shown = [], columns = [], extent = { width: 0, height: 0 };

  function letterWidth() {
    const card = shape("g", { class: "card" }, $("cards"));
    const text = shape("text", {}, card);
    text.textContent = "0".repeat(100);
    const width = text.getComputedTextLength() / 100;
    card.remove();
    return width || 7.2;
  }

  /** Places every node that no fold hides. Subtrees are pushed together until their outlines touch. */
  function layout() {
    shown = [root];
    for (const node of shown) if (!node.folded) shown.push(...node.kids);
    columns = [];
    for (const node of shown) (columns[node.depth] ??= []).push(node);
    let x = 0;
    for (const column of columns) {
      const letters = column.reduce((most, node) => Math.max(most, node.label.length), 8);
      const width = Math.ceil(24 + letters * LETTER + VALUE);
      for (const node of column) { node.x = x; node.width = width; }
      x += width + GUTTER;
    }
    // An outline is the highest and lowest row on each level below a node, relative to the node's own row.
    for (let i = shown.length - 1; i >= 0; i--) {
      const node = shown[i];
      const kids = node.folded ? [] : node.kids;
      let top = [], bottom = [];
      for (const kid of kids) {
        let shift = 0;
        const levels = Math.min(top.length, kid.top.length);
        for (let level = 0; level < levels; level++) {
          shift = Math.max(shift, bottom[level] - kid.top[level] + (level ? 1.3 : 1));
        }
        kid.shift = shift;
        for (let level = 0; level < kid.top.length; level++) {
          if (level >= top.length) top.push(kid.top[level] + shift);
          bottom[level] = kid.bottom[level] + shift;
        }
        kid.top = kid.bottom = null;
      }
      const middle = kids.length ? (kids[0].shift + kids[kids.length - 1].shift) / 2 : 0;
      for (const kid of kids) kid.shift -= middle;
      node.top = [0];
      node.bottom = [0];
      for (const row of top) node.top.push(row - middle);
      for (const row of bottom) node.bottom.push(row - middle);
    }
    const highest = root.top.reduce((a, b) => Math.min(a, b), 0);
    root.y = -highest * ROW + HEIGHT;
    let bottom = 0;
    for (const node of shown) {
      if (node !== root) node.y = Math.round(10 * (node.up.y + node.shift * ROW)) / 10;
      bottom = Math.max(bottom, node.y);
    }
    for (const column of columns) column.sort((a, b) => a.y - b.y);
    extent = { width: x - GUTTER, height: bottom + HEIGHT };
    drawMap();
  }

  // Drawing ----------------------------------------------------------------------------------------------------

  const svg = $("tree"), cards = new Map();
  const view = { x: 0, y: 0, k: 1 };
  const NEAR = .5;                   // from this scale on, nodes are cards with text; below, coloured bars
  let now = end, selected = root, hovered = null, queued = false, version = 0, size = { width: 1, height: 1 };
  // One path for each shade, the worst first: pruned and unscored, pruned and scored, unscored, scored.
  const dots = Array.from({ length: 16 }, (_, rank) =>
    shape("path", { class: `dot f${(rank + 7) % 8}${rank < 8 ? " pruned" : ""}` }, $("dots")));
  const answerDot = shape("path", { class: "dot answer" }, $("dots"));
  const selectedDot = shape("path", { class: "dot selected" }, $("dots"));

  /** Across, the tree never gets narrower than the stage while bars are drawn: large trees are tall and thin. */
  const scaleX = (k = view.k) => Math.max(k, Math.min(NEAR, (size.width - MARGIN.left - MARGIN.right) / extent.width));

  function redraw(everything = true) {
    if (everything) version++;
    if (!queued) { queued = true; requestAnimationFrame(draw); }
  }

  const spine = node => node.x + node.width + 37;
  /** The link into a node: along its parent's spine, round the corner, to the node. */
  function bend(node) {
    const x = spine(node.up), rise = node.y - node.up.y, corner = Math.min(8, Math.abs(rise));
    if (corner < .5) return `M${x} ${node.y}H${node.x}`;
    return `M${x} ${node.y - Math.sign(rise) * corner}Q${x} ${node.y} ${x + corner} ${node.y}H${node.x}`;
  }
  function wire(path) {
    let d = "";
    for (const node of path) {
      if (!node.up || !isShown(node) || !born(node)) continue;
      const rise = node.y - node.up.y, corner = Math.min(8, Math.abs(rise));
      d += `M${node.up.x + node.up.width} ${node.up.y}H${spine(node.up)}`;
      if (corner >= .5) d += `V${node.y - Math.sign(rise) * corner}`;
      d += bend(node);
    }
    return d;
  }
  function isShown(node) {
    for (let up = node.up; up; up = up.up) if (up.folded) return false;
    return true;
  }

  function draw() {
    queued = false;
    const box = svg.getBoundingClientRect();
    size = { width: box.width, height: box.height };
    const { x, y, k } = view, kx = scaleX();
    $("world").setAttribute("transform", `translate(${-x * kx} ${-y * k}) scale(${kx} ${k})`);
    const left = x - 20, right = x + size.width / kx + 20, top = y - ROW, bottom = y + size.height / k + ROW;

    let links = "";
    const inView = [], drawn = new Set();
    for (const node of shown) {
      if (!born(node)) continue;
      const inside = node.y > top && node.y < bottom;
      if (inside && node.x < right && node.x + node.width > left) inView.push(node);
      if (node.up && inside && spine(node.up) < right && node.x > left) {
        const line = node.depth * 1e6 + Math.round(node.y * k);
        if (k >= NEAR || !drawn.has(line)) links += bend(node);
        drawn.add(line);
      }
      if (node.folded || !node.kids.length) continue;
      // The spine that a node's children hang on, as far as they are born and the view reaches.
      const at = spine(node);
      if (at < left || node.x + node.width > right) continue;
      let first = node.y, last = node.y, any = false;
      for (const kid of node.kids) {
        if (!born(kid)) continue;
        any = true;
        first = Math.min(first, kid.y + 8);
        last = Math.max(last, kid.y - 8);
      }
      if (!any || last < top || first > bottom) continue;
      links += `M${node.x + node.width} ${node.y}H${at}M${at} ${Math.max(first, top)}V${Math.min(last, bottom)}`;
    }
    $("links").setAttribute("d", links);
    const finish = best();
    const finishPath = lineage(finish);
    $("links-answer").setAttribute("d", wire(finishPath));
    $("links-selected").setAttribute("d", selected === finish ? "" : wire(lineage(selected)));

    if (k >= NEAR) drawCards(inView, new Set(finishPath), finish);
    else drawDots(inView, finish);
    $("zoom").textContent = `${k < .1 ? (k * 100).toPrecision(1) : Math.round(k * 100)}%`;
    $("map-view").setAttribute("x", x * map.k);
    $("map-view").setAttribute("y", y * map.k);
    $("map-view").setAttribute("width", Math.max(2, size.width / kx * map.k));
    $("map-view").setAttribute("height", Math.max(2, size.height / k * map.k));
    doc.dataset.drawn = inView.length;
  }

  function drawDots(inView, finish) {
    for (const card of cards.values()) card.element.remove();
    cards.clear();
    const paths = Array(16).fill("");
    const rect = (node, grow = 0) => {
      const height = Math.max(HEIGHT * .7, 2 / view.k) + grow / view.k, out = grow / scaleX();
      return `M${node.x - out} ${node.y - height / 2}h${node.width + 2 * out}v${height}h${-node.width - 2 * out}z`;
    };
    // Where several nodes share a line of pixels, the best of them shows.
    const lines = new Map();
    for (const node of inView) {
      const rank = (shade(node) + 1) % 8 + (isPruned(node) ? 0 : 8), line = node.depth * 1e6 + Math.round(node.y * view.k);
      const other = lines.get(line);
      if (!other || rank > other[1]) lines.set(line, [node, rank]);
    }
    for (const [node, rank] of lines.values()) paths[rank] += rect(node);
    dots.forEach((dot, i) => dot.setAttribute("d", paths[i]));
    answerDot.setAttribute("d", finish && born(finish) && isShown(finish) ? rect(finish, 4) : "");
    selectedDot.setAttribute("d", born(selected) && isShown(selected) ? rect(selected, 3) : "");
  }

  function drawCards(inView, path, finish) {
    for (const dot of [...dots, answerDot, selectedDot]) dot.setAttribute("d", "");
    const keep = new Set(inView);
    for (const [node, card] of cards) {
      if (!keep.has(node)) { card.element.remove(); cards.delete(node); }
    }
    for (const node of inView) {
      let card = cards.get(node);
      if (!card) { card = newCard(node); cards.set(node, card); }
      if (card.version !== version) updateCard(card, node, path, finish);
    }
    const current = cards.get(selected);
    if (current) svg.setAttribute("aria-activedescendant", current.element.id);
    else svg.removeAttribute("aria-activedescendant");
  }

  function newCard(node) {
    const element = shape("g", { id: `n${node.index}`, role: "treeitem", "aria-level": node.depth + 1 }, $("cards"));
    return {
      element, version: -1,
      box: shape("rect", { class: "box", height: HEIGHT, rx: 5 }, element),
      strip: shape("rect", { class: "strip", x: 4, y: 4, width: 4, height: HEIGHT - 8, rx: 2 }, element),
      label: shape("text", { class: "label", x: 15, y: 17.5 }, element),
      value: shape("text", { class: "value", y: 17.5 }, element),
      extra: null,
    };
  }

  function updateCard(card, node, path, finish) {
    card.version = version;
    const { element } = card;
    const classes = ["card"];
    if (isPruned(node)) classes.push("pruned");
    if (path.has(node)) classes.push("on-path");
    if (node === selected) classes.push("selected");
    if (node.unrecorded) classes.push("bare");
    if (now < end && subject[now - 1] === node) classes.push("fresh");
    element.setAttribute("class", classes.join(" "));
    element.setAttribute("transform", `translate(${node.x} ${node.y - HEIGHT / 2})`);
    element.setAttribute("aria-selected", node === selected);
    element.setAttribute("aria-label", spoken(node));
    if (node.kids.length) element.setAttribute("aria-expanded", !node.folded);
    card.box.setAttribute("width", node.width);
    card.strip.setAttribute("class", `strip f${shade(node)}`);
    card.label.textContent = node.label;
    card.value.setAttribute("x", node.width - 9);
    card.value.replaceChildren();
    const expansion = latest(node.expansions), value = metric.value(node);
    if (expansion) shape("tspan", { class: "order" }, card.value).textContent = `#${expansion[1]}  `;
    if (node === finish) card.value.append("★ ");
    if (value != null) card.value.append(fixed(value));
    card.extra?.remove();
    card.extra = null;
    if (node.folded) {
      const hidden = `+${count(node.size - 1)}`, width = 12 + hidden.length * 6.4;
      card.extra = shape("g", { transform: `translate(${node.width + 6} ${HEIGHT / 2})` }, element);
      shape("rect", { class: "knob", x: 0, y: -8, width, height: 16, rx: 8 }, card.extra);
      shape("text", { class: "knob-text", x: width / 2, y: 3.5 }, card.extra).textContent = hidden;
    } else if (node.kids.some(born)) {
      card.extra = shape("circle", { class: "knob", cx: node.width, cy: HEIGHT / 2, r: 4.5 }, element);
    }
  }

  function spoken(node) {
    const value = metric.value(node);
    return [node.label, value == null ? null : `${metric.name} ${fixed(value)}`,
      node === best() ? "answer" : null, isPruned(node) ? `pruned: ${node.pruned[1]}` : null,
      node.folded ? `${plural(node.size - 1, "node")} folded` : null].filter(Boolean).join(", ");
  }

  function drawLegend() {
    const ramp = make("div", { class: "ramp" });
    for (let i = 0; i < 7; i++) ramp.append(make("span", { class: `r${metric.low ? 6 - i : i}` }));
    $("legend").replaceChildren(metric.name[0].toUpperCase() + metric.name.slice(1), ramp,
      make("div", { class: "ends" }, make("span", {}, fixed(metric.from)), make("span", {}, fixed(metric.to))));
  }

  // The map: the whole tree, small, when it does not fit.
  const map = { k: 1 };
  function drawMap() {
    map.k = Math.min(110 / Math.max(1, extent.width), 190 / Math.max(1, extent.height));
    const width = Math.max(40, extent.width * map.k), height = Math.max(16, extent.height * map.k);
    $("map").setAttribute("viewBox", `0 0 ${width} ${height}`);
    $("map").style.width = `${width + 14}px`;
    $("map").style.height = `${height + 14}px`;
    const seen = new Set();
    let d = "";
    for (const node of shown) {
      const x = Math.round(node.x * map.k), y = Math.round(node.y * map.k);
      if (seen.has(x * 1000 + y)) continue;
      seen.add(x * 1000 + y);
      d += `M${x} ${y}h${Math.max(1, node.width * map.k).toFixed(1)}v1h${-Math.max(1, node.width * map.k).toFixed(1)}z`;
    }
    $("map-nodes").setAttribute("d", d);
    const points = lineage(answer).filter(isShown).map(node => `${node.x * map.k} ${node.y * map.k}`);
    $("map-answer").setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  }

  // Moving the view ----------------------------------------------------------------------------------------------

  const MARGIN = { top: 70, bottom: 84, left: 24, right: 24 };
  function bounded() {
    view.x = clamp(view.x, -size.width / scaleX() * .8, extent.width - size.width / scaleX() * .2);
    view.y = clamp(view.y, -size.height / view.k * .8, extent.height - size.height / view.k * .2);
    const small = extent.width * scaleX() <= size.width && extent.height * view.k <= size.height;
    $("map").toggleAttribute("hidden", small);
  }
  function zoomBy(factor, px = size.width / 2, py = size.height / 2) {
    const k = clamp(view.k * factor, .004, 3);
    view.x += px / scaleX() - px / scaleX(k);
    view.y += py / view.k - py / k;
    view.k = k;
    bounded();
    redraw(false);
  }
  function fit(smallest = .004) {
    const width = size.width - MARGIN.left - MARGIN.right, height = size.height - MARGIN.top - MARGIN.bottom;
    view.k = clamp(Math.min(width / extent.width, height / extent.height), smallest, 1.15);
    view.x = -(MARGIN.left + Math.max(0, width - extent.width * scaleX()) / 2) / scaleX();
    view.y = -(MARGIN.top + Math.max(0, height - extent.height * view.k) / 2) / view.k;
    bounded();
    redraw(false);
  }
  function centre(node) {
    view.x = node.x + node.width / 2 - size.width / 2 / scaleX();
    view.y = node.y - (size.height + MARGIN.top - MARGIN.bottom) / 2 / view.k;
    bounded();
    redraw(false);
  }
  function reveal(node) {
    if (!isShown(node)) {
      for (let up = node.up; up; up = up.up) up.folded = false;
      layout();
    }
    const { k } = view, kx = scaleX(), bottom = view.y + (size.height - MARGIN.bottom) / k;
    if (node.y - HEIGHT < view.y + MARGIN.top / k) view.y = node.y - HEIGHT - MARGIN.top / k;
    else if (node.y + HEIGHT > bottom) view.y += node.y + HEIGHT - bottom;
    const { clientWidth, clientHeight } = $("map");
    const beside = (node.y - HEIGHT - view.y) * k < clientHeight + 14 ? clientWidth : 0;   // keep clear of the map
    const right = view.x + (size.width - MARGIN.right - beside) / kx;
    if (node.x < view.x + 12 / kx) view.x = node.x - MARGIN.left / kx;
    else if (node.x + node.width > right) view.x += node.x + node.width - right;
    bounded();
  }

  function select(node, follow = true) {
    selected = node;
    if (follow) reveal(node);
    drawNode();
    redraw();
  }
  function fold(node, folded = !node.folded) {
    if (!node.kids.length) return;
    const before = node.y;
    node.folded = folded;
    if (folded && lineage(selected).includes(node)) selected = node;
    layout();
    view.y += node.y - before;       // what was clicked stays where it was
    bounded();
    drawNode();
    redraw();
  }
  function foldBesideAnswer() {
    for (const node of nodes) node.folded = !answerPath.has(node) && node.kids.length > 0;
    if (!isShown(selected)) selected = answer ?? root;
    layout();
    drawNode();
  }

  // Time -----------------------------------------------------------------------------------------------------------

  let playing = null;
  /** Shows the search as it was after `step` events; `follow` selects the node that the last of them is about. */
  function goTo(step, follow = false) {
    now = clamp(Math.round(step), 0, end);
    $("time").value = now;
    if (follow) selected = now ? subject[now - 1] : root;
    else if (!born(selected)) selected = lineage(selected).filter(born).pop() ?? root;
    drawNow();
    drawNode();
    redraw();
  }
  function drawNow() {
    let alive = 0, tokens = 0, expanded = 0;
    for (const node of nodes) {
      if (!born(node)) continue;
      alive++;
      tokens += node.tokens?.length ?? 0;
      if (latest(node.expansions)) expanded++;
    }
    const top = latest(data.proposals);
    const parts = [[`${fixed(now ? times[now - 1] : 0, 3)} s`], [count(alive), alive === 1 ? "node" : "nodes"], [count(tokens), "tokens"]];
    if (nodes.some(node => node.expansions)) parts.push([count(expanded), "expanded"]);
    if (top && top[2] != null) parts.push([fixed(top[2]), "best"]);
    $("now").replaceChildren(...parts.flatMap(([value, unit], i) =>
      [i ? " · " : "", make("b", {}, value), unit ? ` ${unit}` : ""]));
    $("time").setAttribute("aria-valuetext", $("now").textContent);
    $("back").disabled = now === 0;
    $("forward").disabled = now === end;
  }
  function stepBy(events) {
    play(false);
    goTo(now + events, true);
    reveal(selected);
  }
  function play(on = !playing) {
    if (playing) cancelAnimationFrame(playing.frame);
    playing = null;
    if (on && end) {
      if (now === end) goTo(0);
      const rate = end / clamp(end * .12, 4, 20);   // events a second: the whole search in 4 to 20 seconds
      playing = { from: now, start: performance.now(), frame: 0 };
      const tick = at => {
        goTo(playing.from + (at - playing.start) / 1000 * rate, true);
        if (now >= end) play(false);
        else playing.frame = requestAnimationFrame(tick);
      };
      playing.frame = requestAnimationFrame(tick);
    }
    $("node").setAttribute("aria-live", playing ? "off" : "polite");
    $("play").classList.toggle("playing", !!playing);
    $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  }

  // Panels -----------------------------------------------------------------------------------------------------------

  /** Tokens, each shaded by how improbable the model found it: at 1 % or less, fully. */
  function tokens(node, note = null) {
    const text = make("p", { class: "tokens" });
    (node.tokens ?? []).forEach((token, i) => {
      const logprob = node.logprobs[i], piece = data.vocabulary[token];
      const span = make("span", { class: "tok" });
      if (!piece) span.append(make("span", { class: "nl" }, i === node.tokens.length - 1 && node.finish === "eos" ? "⟨end⟩" : "⟨⟩"));
      for (const part of piece.split(/(\n)/)) {
        if (part === "\n") span.append(make("span", { class: "nl" }, "↵"), "\n");
        else if (part) span.append(part);
      }
      if (logprob != null) span.style.backgroundColor = `rgb(var(--shade) / ${(.6 * clamp(-logprob / 4.6, 0, 1)).toFixed(3)})`;
      if (note) span.addEventListener("pointerenter", () => { note.textContent = about(node, i); });
      text.append(span);
    });
    if (!node.tokens) text.append(make("span", { class: "dim" }, node.text || node.label));
    return text;
  }
  function about(node, i) {
    const logprob = node.logprobs[i];
    if (logprob == null) return `${JSON.stringify(data.vocabulary[node.tokens[i]])}: no log-probability`;
    const drawn = node.sampleLogprobs?.[i];
    const percent = x => `${(100 * Math.exp(x)).toFixed(x > -4.6 ? 1 : 3)} %`;
    return `${JSON.stringify(data.vocabulary[node.tokens[i]])}  log-probability ${fixed(logprob, 3)} (${percent(logprob)})`
      + (drawn == null ? "" : `, as drawn ${fixed(drawn, 3)} (${percent(drawn)})`);
  }
  function numbers(node) {
    const score = latest(node.scores), expansion = latest(node.expansions);
    const drawn = node.sampleLogprobs ? sum(node.sampleLogprobs) : null;
    return [
      ["Score", score && `${fixed(score[1], 3)}${score[2] ? ` · ${score[2]}` : ""}`],
      ["Expanded", expansion && `#${expansion[1]} at ${fixed(times[expansion[0]], 3)} s`],
      ["Costs g · h · f", expansion && expansion.slice(2).some(cost => cost != null) ? expansion.slice(2).map(cost => fixed(cost, 3)).join(" · ") : null],
      ["Log-probability", node.logprob == null ? null : `${fixed(node.logprob)} (${fixed(node.logprob / node.logprobs.length)} per token)`],
      ["Under the proposal", drawn == null ? null : fixed(drawn)],
    ];
  }
  function tags(node) {
    const list = [];
    if (node === best()) list.push([now >= end && data.finished ? "★ answer" : "★ best so far", "strong"]);
    else if (lineage(best()).includes(node)) list.push(["on the answer’s path"]);
    if (isPruned(node)) list.push([`pruned: ${node.pruned[1]}`]);
    const kept = (node.selected ?? []).filter(when => when < now).length;
    if (kept) list.push([kept > 1 ? `selected ${kept} times` : "selected"]);
    if (node.finish) list.push([`ended by ${node.finish}`]);
    if (node.unrecorded) list.push(["the trace does not say what it appends"]);
    return make("div", { class: "tags" }, ...list.map(([text, kind]) => make("span", kind ? { class: kind } : {}, text)));
  }

  function drawNode() {
    const node = selected;
    const own = sum(lineage(node).map(step => step.tokens?.length ?? 0));
    const rows = [
      ...numbers(node),
      ["Tokens", node.tokens ? `${count(node.tokens.length)} here, ${count(own)} on the path` : null],
      ["Log-probability of the path", node.up && node.tokens
        ? fixed(known(lineage(node).filter(step => step.logprobs).map(step => step.logprob))) : null],
      ["Appeared at", node.up ? `${fixed(times[node.when], 3)} s` : null],
      ["Below it", node.kids.length ? plural(node.size - 1, "node") : null],
    ];
    const note = make("div", { class: "token-note" }, "The redder, the less probable. Point at a token for its numbers.");
    const path = make("ol", { class: "path" });
    for (const step of lineage(node)) {
      const item = make("li", step === node ? { class: "here" } : {}, tokens(step, note));
      item.addEventListener("click", () => select(step));
      path.append(item);
    }
    const earlier = (node.scores ?? []).filter(record => record[0] < now).slice(0, -1);
    $("node").replaceChildren(
      make("h2", {}, node === root ? "Prompt" : `Node at depth ${node.depth}`, make("code", {}, node.id)),
      tags(node),
      make("dl", { class: "facts-grid" }, ...facts(rows),
        ...facts(earlier.map(record => [`Earlier score`, `${fixed(record[1], 3)} · ${record[2]}`]))),
      make("h3", {}, node === root ? "Text" : "Text from the prompt to here"), path, note);
  }

  function drawRun() {
    const { header, finished } = data;
    const strategy = typeof header.strategy === "object" && header.strategy ? header.strategy : { name: header.strategy };
    const { name, ...parameters } = strategy;
    $("strategy").textContent = name ?? "Search";
    const known = new Set(["type", "version", "strategy", "prompt", "budget", "capabilities"]);
    const settings = [...Object.entries(header).filter(([key]) => !known.has(key)), ...Object.entries(parameters)];
    for (const [key, value] of settings) {
      if (value == null) continue;
      const text = typeof value === "object" ? JSON.stringify(value) : typeof value === "number" ? `${+value.toPrecision(6)}` : `${value}`;
      $("settings").append(make("div", {}, make("dt", {}, words(key)), make("dd", {}, text)));
    }
    const depth = nodes.reduce((most, node) => Math.max(most, node.depth), 0);
    $("outcome").textContent = [plural(nodes.length, "node"), `depth ${depth}`, plural(end, "event"),
      end ? `${fixed(times[end - 1], 2)} s` : null].filter(Boolean).join(" · ");

    const section = $("run");
    section.append(make("h2", {}, "Run"));
    if (!finished) section.append(make("p", { class: "warn" }, "This trace ends before its run did: what it shows is what was recorded until then."));
    if (finished?.stopped_by) section.append(make("p", { class: "warn" }, `Stopped by its budget: ${finished.stopped_by}.`));
    const text = finished ? finished.text : answer?.text;
    if (text) {
      section.append(make("h3", {}, finished ? "Answer" : "Best so far"), make("p", { class: "plain" }, text));
    } else if (finished) {
      section.append(make("p", { class: "warn" }, "The run ended without an answer."));
    }
    const rows = [["Score", finished?.score == null ? null : fixed(finished.score, 3)]];
    section.append(make("dl", { class: "facts-grid" }, ...facts(rows)));
    const ledger = Object.entries(finished?.ledger ?? {}), budget = header.budget ?? {};
    if (ledger.length) {
      const body = make("tbody");
      for (const [key, spent] of ledger) {
        const limit = budget[key];
        const cell = make("td", {}, spent == null ? "–" : Number.isInteger(spent) ? count(spent) : `${+spent.toPrecision(4)}`);
        if (limit) {
          const bar = make("i");
          bar.style.width = `${clamp(100 * spent / limit, 0, 100)}%`;
          cell.append(make("span", { class: "spent" }, bar));
        }
        body.append(make("tr", {}, make("th", { scope: "row" }, words(key)), cell, make("td", {}, limit ? count(limit) : "–")));
      }
      section.append(make("h3", {}, "Ledger"), make("table", {},
        make("thead", {}, make("tr", {}, make("th", { scope: "col" }, ""), make("th", { scope: "col" }, "Spent"), make("th", { scope: "col" }, "Limit"))), body));
    }
  }

  // Pointer and keys ---------------------------------------------------------------------------------------------------

  function nodeAt(px, py) {
    const x = px / scaleX() + view.x, y = py / view.k + view.y;
    const reach = Math.max(HEIGHT / 2, 5 / view.k);
    return shown.find(node => born(node) && Math.abs(node.y - y) <= reach && x >= node.x &&
      x <= node.x + node.width + (node.folded ? 60 : 7)) ?? null;
  }
  const onKnob = (node, px) => node.kids.length > 0 && view.k >= NEAR && px / view.k + view.x > node.x + node.width - 6;

  function hover(node, px, py) {
    const tip = $("tip");
    svg.classList.toggle("over", !!node);
    if (!node || node === root && !node.text) { tip.hidden = true; hovered = null; return; }
    if (node !== hovered) {
      hovered = node;
      const lines = numbers(node).filter(([, value]) => value != null);
      tip.replaceChildren(tokens(node), tags(node), make("dl", { class: "facts-grid" }, ...facts(lines)));
      tip.hidden = false;
    }
    tip.style.left = `${clamp(px + 16, 8, size.width - tip.offsetWidth - 8)}px`;
    tip.style.top = `${py + 20 + tip.offsetHeight > size.height ? Math.max(8, py - tip.offsetHeight - 14) : py + 20}px`;
  }

  /** Where on the stage a pointer event is. */
  function place(event) {
    const box = svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }
  const pointers = new Map();
  let moved = 0;
  svg.addEventListener("pointerdown", event => {
    svg.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, place(event));
    if (pointers.size === 1) moved = 0;
    svg.focus({ preventScroll: true });
  });
  svg.addEventListener("pointermove", event => {
    const [px, py] = place(event);
    const from = pointers.get(event.pointerId);
    if (!from) return hover(nodeAt(px, py), px, py);
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    if (others.length) {
      const [ox, oy] = others[0];
      zoomBy(Math.hypot(px - ox, py - oy) / Math.max(1, Math.hypot(from[0] - ox, from[1] - oy)), ox, oy);
    } else {
      moved += Math.hypot(px - from[0], py - from[1]);
      if (moved > 4) {
        svg.classList.add("dragging");
        hover(null);
        view.x -= (px - from[0]) / scaleX();
        view.y -= (py - from[1]) / view.k;
        bounded();
        redraw(false);
      }
    }
    pointers.set(event.pointerId, [px, py]);
  });
  const lift = event => {
    const was = pointers.delete(event.pointerId);
    svg.classList.remove("dragging");
    if (!was || moved > 4 || pointers.size || event.type === "pointercancel") return;
    const [px, py] = place(event), node = nodeAt(px, py);
    if (!node) return;
    if (onKnob(node, px)) fold(node);
    else select(node, false);
  };
  svg.addEventListener("pointerup", lift);
  svg.addEventListener("pointercancel", lift);
  svg.addEventListener("pointerleave", () => hover(null));
  svg.addEventListener("dblclick", event => {
    const [px, py] = place(event), node = nodeAt(px, py);
    if (node && !onKnob(node, px)) fold(node);
  });
  svg.addEventListener("wheel", event => {
    event.preventDefault();
    const unit = event.deltaMode ? 20 : 1;
    if (event.ctrlKey || event.metaKey) {
      zoomBy(Math.exp(-event.deltaY * unit * .004), ...place(event));
    } else {
      view.x += (event.shiftKey ? event.deltaY : event.deltaX) * unit / scaleX();
      view.y += (event.shiftKey ? 0 : event.deltaY) * unit / view.k;
      bounded();
      redraw(false);
    }
    hover(null);
  }, { passive: false });

  const steer = event => {
    if (!event.buttons) return;
    const box = $("map").getBoundingClientRect();
    view.x = (event.clientX - box.left - 7) / map.k - size.width / 2 / scaleX();
    view.y = (event.clientY - box.top - 7) / map.k - size.height / 2 / view.k;
    bounded();
    redraw(false);
  };
  $("map").addEventListener("pointerdown", event => { $("map").setPointerCapture(event.pointerId); steer(event); });
  $("map").addEventListener("pointermove", steer);

  function goToAnswer() {
    const node = best();
    if (!node) return;
    if (view.k < NEAR) view.k = .9;
    select(node);
    centre(node);
  }
  function sideways(step) {
    const column = columns[selected.depth].filter(born);
    return column[column.indexOf(selected) + step];
  }
  function inward() {
    if (selected.folded) fold(selected, false);
    const kids = selected.kids.filter(born);
    return kids.find(kid => answerPath.has(kid)) ?? kids[Math.floor((kids.length - 1) / 2)];
  }
  const keys = [
    ["←", "to the parent", ["ArrowLeft"], () => selected.up],
    ["→", "to a child, the answer’s first", ["ArrowRight"], inward],
    ["↑ ↓", "to the node above or below", ["ArrowUp"], () => sideways(-1)],
    [null, null, ["ArrowDown"], () => sideways(1)],
    ["Enter", "fold or unfold", ["Enter"], () => { fold(selected); }],
    ["Space", "play or pause the search", [" "], () => { play(); }],
    [", .", "one event back, one on", [","], () => { stepBy(-1); }],
    [null, null, ["."], () => { stepBy(1); }],
    ["A", "to the answer", ["a", "A"], () => { goToAnswer(); }],
    ["Home", "to the prompt", ["Home"], () => root],
    ["F", "fit the whole tree", ["f", "F"], () => { fit(); }],
    ["+ −", "zoom", ["+", "="], () => { zoomBy(1.3); }],
    [null, null, ["-", "−"], () => { zoomBy(1 / 1.3); }],
    ["?", "show or hide this list", ["?"], () => { help(); }],
    [null, null, ["Escape"], () => { help(false); }],
  ];
  function help(on = $("help").hidden) {
    $("help").hidden = !on;
    $("keys").setAttribute("aria-expanded", on);
  }
  $("help").append(make("dl", {},
    ...keys.filter(([name]) => name).flatMap(([name, what]) => [make("dt", {}, make("kbd", {}, name)), make("dd", {}, what)]),
    make("dt", {}, "Drag, scroll"), make("dd", {}, "move the view"),
    make("dt", {}, "Ctrl + scroll, pinch"), make("dd", {}, "zoom"),
    make("dt", {}, "Double click"), make("dd", {}, "fold or unfold")));

  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const at = event.target;
    // A control in focus keeps its own keys.
    if (at.matches?.("select, input") || at.matches?.("button") && [" ", "Enter"].includes(event.key)) return;
    const key = keys.find(([, , names]) => names.includes(event.key));
    if (!key) return;
    event.preventDefault();
    hover(null);
    const target = key[3]();
    if (target) select(target);
  });

  $("play").addEventListener("click", () => play());
  $("back").addEventListener("click", () => stepBy(-1));
  $("forward").addEventListener("click", () => stepBy(1));
  $("time").addEventListener("input", () => { play(false); goTo(+$("time").value); });
  $("zoom-in").addEventListener("click", () => zoomBy(1.3));
  $("zoom-out").addEventListener("click", () => zoomBy(1 / 1.3));
  $("fit").addEventListener("click", () => fit());
  $("go-answer").addEventListener("click", goToAnswer);
  $("fold").addEventListener("click", () => { foldBesideAnswer(); fit(NEAR); centre(selected); redraw(); });
  $("unfold").addEventListener("click", () => { for (const node of nodes) node.folded = false; layout(); fit(); redraw(); });
  $("keys").addEventListener("click", () => help());
  $("metric").addEventListener("change", () => { setMetric($("metric").value); redraw(); });
  new ResizeObserver(() => { const box = svg.getBoundingClientRect(); size = { width: box.width, height: box.height }; bounded(); redraw(false); }).observe(svg);

  // Start ------------------------------------------------------------------------------------------------------------

  for (const [name, { any }] of Object.entries(metrics)) {
    if (any || name === "score") $("metric").append(make("option", {}, name));
  }
  const start = Object.keys(metrics).find(name => metrics[name].any) ?? "score";
  $("metric").value = start;
  $("time").max = end;
  $("time").value = end;
  $("go-answer").disabled = !answer;
  setMetric(start);
  drawRun();
  size = (({ width, height }) => ({ width, height }))(svg.getBoundingClientRect());
  selected = answer ?? root;
  // A large tree opens folded to the answer's path; one click unfolds it.
  if (nodes.length > 400) foldBesideAnswer();
  layout();
  fit(.8);
  if (view.k * extent.height > size.height - MARGIN.top - MARGIN.bottom) {
    const rows = lineage(selected).map(node => node.y), low = Math.min(...rows), high = Math.max(...rows);
    const middle = (high - low) * view.k < size.height * .7 ? (low + high) / 2 : selected.y;
    view.y = middle - (size.height + MARGIN.top - MARGIN.bottom) / 2 / view.k;
    bounded();
  }
  reveal(selected);
  drawNow();
  drawNode();
  draw();
  Object.assign(doc.dataset, { nodes: nodes.length, events: end, ready: "yes" });
})();
