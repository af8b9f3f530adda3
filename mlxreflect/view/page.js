// The script of the page. It shows data that it does not trust: every text gets into the page as a
// text node, never as markup, and what could steer or hide text is shown as a visible mark.
"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// As in core/ui.py: control characters but tab and newline, what reorders or hides text, and (by
// the flag u) lone surrogates.
const UNSAFE = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\u{e0000}-\u{e007f}]/gu;
const LONG = 20000; // characters of a text that are shown at once
const ROW = 40; // pixels
const EVERY = 1500; // milliseconds between looks at a server
const state = { tree: null, version: 0, drawn: new Map(), tables: new Map(), stories: new Map() };

// ---- elements -----------------------------------------------------------------------------------

function make(parent, namespace, tag, attributes, children) {
  const made = namespace ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children) add(made, child);
  if (parent) parent.append(made);
  return made;
}
const el = (tag, attributes, ...children) => make(null, false, tag, attributes, children);
const svg = (tag, attributes, ...children) => make(null, true, tag, attributes, children);

function add(parent, child) {
  if (child === null || child === undefined || child === false) return;
  if (Array.isArray(child)) for (const one of child) add(parent, one);
  else if (child instanceof Node) parent.append(child);
  else visible(parent, String(child));
}

// Appends a text with a mark in place of each character that could steer or hide it.
function visible(parent, text) {
  let last = 0;
  for (const found of text.matchAll(UNSAFE)) {
    if (found[0] === "\r" && text[found.index + 1] === "\n") continue;
    parent.append(text.slice(last, found.index));
    const code = found[0].codePointAt(0);
    const hex = code.toString(16);
    const said = code < 256 ? "\\x" + hex.padStart(2, "0") : "\\u" + hex.padStart(4, "0");
    const mark = document.createElementNS(parent.namespaceURI === SVG ? SVG : "http://www.w3.org/1999/xhtml",
      parent.namespaceURI === SVG ? "tspan" : "span");
    mark.setAttribute("class", "mark");
    mark.textContent = said;
    parent.append(mark);
    last = found.index + found[0].length;
  }
  parent.append(text.slice(last));
}

// A text of a model in full; a very long one in parts, so that one line of a megabyte hangs nothing.
function prose(text, name) {
  const box = el("pre", { class: "prose", tabindex: text.length > 600 ? 0 : null, role: text.length > 600 ? "region" : null, "aria-label": text.length > 600 ? name || "Text" : null });
  let shown = 0;
  const more = el("button", { type: "button", class: "quiet", onclick: () => grow() });
  function grow() {
    const part = text.slice(shown, shown + LONG);
    more.remove();
    visible(box, part);
    shown += part.length;
    if (shown < text.length) {
      more.textContent = `Show ${count(Math.min(LONG, text.length - shown))} more of ${count(text.length)} characters`;
      box.append(more);
    }
  }
  grow();
  return box;
}

// ---- numbers ------------------------------------------------------------------------------------

const known = (x) => x !== null && x !== undefined && Number.isFinite(x);
const count = (x) => (known(x) ? Math.round(x).toLocaleString("en") : "–");
const percent = (x) => (known(x) ? (100 * x).toFixed(1) + "%" : "–");
const points = (x) => (known(x) ? (x < 0 ? "−" : "+") + Math.abs(100 * x).toFixed(1) : "–");
const few = (x) => (known(x) ? String(Math.abs(x) < 1e-6 ? 0 : Number(x.toPrecision(4))).replace("-", "−") : "–");
const counted = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
// A file does not follow a run that was working when it was written.
const stateOf = (run) => (run.as_of ? "as of " + run.as_of : run.state);
const badge = (run) => el("span", { class: "badge " + (run.as_of ? "" : run.state) }, stateOf(run));
const spaced = (word) => String(word).replaceAll("_", " ");

function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

// ---- what belongs to a run, and where one is on the page ----------------------------------------

const VIEWS = { overview: "Overview", learned: "Training problems", held_out: "Held-out problems", probes: "Probes", graph: "Knowledge graph", recipe: "Recipe" };
const has = (run, id) => id === "overview" || (id === "recipe" ? run.keys.rows.length > 0 : id === "graph" ? Boolean(run.graph) : Boolean(run.tables[id]));
const link = (...parts) => "#/" + parts.map(encodeURIComponent).join("/");

function place() {
  const parts = location.hash.replace(/^#\/?/, "").split("/").map((part) => {
    try { return decodeURIComponent(part); } catch { return ""; }
  });
  const runs = state.tree.runs;
  if (parts[0] === "compare" && runs.length > 1) return { compare: true };
  const number = runs[Number(parts[0])] ? Number(parts[0]) : 0;
  if (!parts[0] && runs.length > 1) return { compare: true };
  const run = runs[number];
  const view = Object.hasOwn(VIEWS, parts[1]) && has(run, parts[1]) ? parts[1] : "overview";
  return { number, run, view, story: run.tables[view] && parts[2] ? parts[2] : "" };
}

const keyOf = (at) => JSON.stringify([at.compare, at.number, at.view, at.story]);
const unreadable = (error) => notice(`These texts cannot be opened: ${error.message}`);

function render() {
  if (!state.tree || !state.tree.runs.length) return;
  const at = place();
  navigation(at);
  const key = keyOf(at);
  if (state.at !== key) {
    state.at = key;
    state.drawn.clear();
    $("main").replaceChildren();
    window.scrollTo(0, 0);
  }
  if (at.compare) comparePage();
  else if (at.view === "probes") probesPage(at);
  else if (at.view === "graph") graphPage(at);
  else if (at.story) storyPage(at);
  else if (at.run.tables[at.view]) tablePage(at);
  else if (at.view === "recipe") recipePage(at);
  else overviewPage(at);
}

function navigation(at) {
  const runs = state.tree.runs;
  section("runs", runs.map((run) => [run.name, run.state]), () => {
    if (runs.length < 2) return [el("a", { href: link(0), class: "name", title: runs[0].folder }, runs[0].name)];
    const links = runs.map((run, i) => el("a", { href: link(i, "overview"), "data-run": i, title: run.folder }, run.name));
    return [el("a", { href: link("compare"), "data-run": "compare" }, "Compare"), ...links];
  }, $("runs"));
  for (const one of $("runs").querySelectorAll("[data-run]")) {
    const here = one.dataset.run === (at.compare ? "compare" : String(at.number));
    if (here) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  }
}

// Draws a part of the page, and only if its data is not what it was: what one reads stays there.
function section(name, data, draw, host) {
  const said = JSON.stringify(data);
  if (state.drawn.get(name) === said && (host || $("part-" + name))) return;
  state.drawn.set(name, said);
  let home = host || $("part-" + name);
  if (!home) {
    home = el("section", { id: "part-" + name });
    $("main").append(home);
  }
  home.replaceChildren();
  add(home, draw());
  home.hidden = !home.childNodes.length;
}

function heading(at) {
  const { run, number, view } = at;
  section("heading", [run.name, run.state, run.facts, view, Boolean(run.graph), Object.values(run.tables).map((t) => t.rows.length)], () => {
    const facts = Object.entries(run.facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
    const tabs = Object.entries(VIEWS).filter(([id]) => has(run, id));
    return [
      el("div", { class: "title" }, el("h1", {}, run.name), badge(run)),
      el("p", { class: "facts" }, facts.map(([name, value]) => el("span", {}, el("span", { class: "dim" }, name + " "), value))),
      el("nav", { class: "tabs", "aria-label": "Parts of this page" }, tabs.map(([id, name]) =>
        el("a", { href: link(number, id), "aria-current": id === view ? "page" : null },
          id === "recipe" && run.kind !== "run" ? "Settings" : name,
          run.tables[id] && el("span", { class: "dim" }, " " + count(run.tables[id].rows.length))))),
    ];
  });
}

// ---- overview -----------------------------------------------------------------------------------

function overviewPage(at) {
  const { run } = at;
  heading(at);
  section("live", run.live, () => run.live && livePanel(run));
  section("verdict", [run.verdicts, run.learned], () => run.verdicts.length ? verdict(run, at.number) : run.learned && learnedPanel(run.learned));
  section("warnings", run.warnings, () => run.warnings.length ? [el("h2", {}, "Before you believe it"), el("ul", { class: "warnings" }, run.warnings.map((one) => el("li", {}, one)))] : []);
  section("charts", run.charts, () => run.charts.length ? [el("h2", {}, "How it went"), el("div", { class: "charts" }, run.charts.map(chart))] : []);
  section("latest", run.live && run.live.latest, () => run.live && run.live.latest && latestPanel(run.live.latest));
  section("arms", run.arms, () => run.arms.length ? [el("h2", {}, "Answers on held-out problems"), armTable(run.arms)] : []);
  section("retries", run.retries, () => run.retries && retriesPanel(run.retries));
  section("cost", run.cost, () => costPanel(run));
  section("totals", run.totals, () => Object.keys(run.totals).length ? [el("h2", {}, "In figures"), factList(run.totals)] : []);
}

function says(one) {
  const who = one.b[0].toUpperCase() + one.b.slice(1), better = one.difference > 0;
  const words = known(one.win_rate) ? ["preferred", "not preferred"] : ["better", "worse"];
  if (one.verdict === "significant" || (one.verdict === undefined && one.p_exact < one.alpha)) return `${who} is ${words[better ? 0 : 1]}`;
  return one.verdict === "borderline" ? `${who} may be ${words[better ? 0 : 1]}` : `${known(one.win_rate) ? percent(one.win_rate) + " win rate" : points(one.difference) + " points"}, not significant`;
}

function verdict(run, number) {
  const [one, ...others] = run.verdicts;
  const n = one.gains + one.losses, said = says(one);
  const share = (k) => (n ? 100 * k / n : 50);
  const listed = run.tables.held_out ? link(number, "held_out") : null;
  const bar = el("div", { class: "gains", role: "img", "aria-label": `${one.gains} gained, ${one.losses} lost` },
    el("div", { class: "gain" }), el("div", { class: "loss" }));
  for (const [part, k] of [[bar.firstChild, one.gains], [bar.lastChild, one.losses]]) {
    part.style.flexGrow = share(k);
    part.hidden = n > 0 && k === 0;
  }
  const filter = (change) => () => { const table = tableOf(number, "held_out"); if (table) table.filters = { change }; };
  return el("div", { class: "verdict" },
    el("p", { class: "kicker" }, `${one.task || "Held-out problems"}, ${counted(one.n, "question")}`),
    el("p", { class: "says" }, said),
    el("div", { class: "numbers" },
      !said.endsWith("not significant") && (known(one.win_rate) ? el("div", { class: "big" }, percent(one.win_rate), el("small", {}, " win rate")) : el("div", { class: "big" }, points(one.difference), el("small", {}, " points"))),
      el("div", { class: "from" },
        el("span", {}, el("b", {}, percent(one.accuracy_a)), el("span", { class: "dim" }, " " + one.a)),
        el("span", { class: "dim", "aria-hidden": "true" }, "→"),
        el("span", {}, el("b", {}, percent(one.accuracy_b)), el("span", { class: "dim" }, " " + one.b)))),
    el("div", { class: "pair" },
      el("div", {}, el("h3", {}, `${known(one.win_rate) ? "Won more than lost" : "Difference"} in points, with its ${Math.round(100 * (1 - one.alpha))}% interval`), interval(one)),
      el("div", {}, el("h3", {}, known(one.win_rate) ? "Answers preferred, and not" : "Questions gained and lost"), bar,
        el("p", { class: "ends" },
          el("a", { href: listed, onclick: filter(known(one.win_rate) ? "preferred" : "wrong → right") }, `${count(one.gains)} gained`),
          el("a", { href: listed, onclick: filter(known(one.win_rate) ? "not preferred" : "right → wrong") }, `${count(one.losses)} lost`)))),
    el("p", { class: "sentence" }, one.sentence),
    others.length ? comparisonTable(others, "Other comparisons") : null);
}

function interval(one) {
  const reach = Math.max(0.02, Math.abs(one.ci_low), Math.abs(one.ci_high)) * 1.15;
  const x = (value) => 200 + 190 * value / reach;
  const y = 16;
  const ends = [[one.ci_low, "end"], [one.ci_high, "start"]], near = x(one.ci_high) - x(one.ci_low) < 68;
  const marks = ends.map(([value, side]) => [value, near ? side : "middle"]);
  if (ends.every(([value]) => Math.abs(x(value) - 200) > 34)) marks.push([0, "middle"]);
  return svg("svg", { class: "interval", viewBox: "0 0 400 52", role: "img", "aria-label": `${points(one.difference)} points, from ${points(one.ci_low)} to ${points(one.ci_high)}` },
    svg("line", { class: "axis", x1: 10, x2: 390, y1: y, y2: y }),
    svg("line", { class: "zero", x1: 200, x2: 200, y1: y - 12, y2: y + 12 }),
    svg("line", { class: "span", x1: x(one.ci_low), x2: x(one.ci_high), y1: y, y2: y }),
    svg("circle", { class: "dot", cx: x(one.difference), cy: y, r: 6 }),
    marks.map(([value, anchor]) => svg("text", { x: x(value), y: 46, "text-anchor": anchor }, value ? points(value) : "0")));
}

function comparisonTable(found, title) {
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {},
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, ["", "difference", "interval", "gained", "lost", "p", "verdict"].map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, found.map((one) => el("tr", {},
      el("th", { scope: "row" }, `${one.task ? one.task + ": " : ""}${one.b} against ${one.a}`),
      el("td", {}, points(one.difference)), el("td", {}, `${points(one.ci_low)} to ${points(one.ci_high)}`),
      el("td", {}, count(one.gains)), el("td", {}, count(one.losses)),
      el("td", {}, few(one.p_holm ?? one.p_exact ?? one.p_perm)), el("td", {}, one.verdict || ""))))));
}

function learnedPanel(learned) {
  if (!learned.first || !learned.last) return [];
  const kinds = ["loss", "margin", "accuracy"].filter((key) => known(learned.first[key]) && known(learned.last[key]));
  return el("div", { class: "verdict" },
    el("p", { class: "kicker" }, `Measured on ${learned.of}, before and after`),
    el("div", { class: "tiles" }, kinds.map((key) => tile(key === "accuracy" ? "pairs ranked right" : key,
      key === "accuracy" ? `${percent(learned.first[key])} → ${percent(learned.last[key])}` : `${few(learned.first[key])} → ${few(learned.last[key])}`))),
    learned.best && el("p", { class: "sentence" }, learned.best.step ? `The best was after step ${count(learned.best.step)}: ${few(learned.best.value)}. That is the adapter.` : "Nothing was better than the policy as it began."));
}

function armTable(arms) {
  const several = new Set(arms.map((arm) => arm.part)).size > 1;
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Answers on held-out problems" }, el("table", {},
    el("thead", {}, el("tr", {}, ["", "questions", "right", "95% interval", "format kept", "unparsed", "cut off", ""].map((name, i) => el(name || i ? "th" : "td", { scope: name ? "col" : null, class: i === 7 ? "wideonly" : null }, name || (i === 7 ? "right" : ""))))),
    el("tbody", {}, arms.map((arm) => el("tr", {},
      el("th", { scope: "row" }, several ? `${arm.part}: ${arm.name}` : arm.name),
      el("td", {}, count(arm.n) + (arm.samples > 1 ? ` × ${arm.samples}` : "")), el("td", {}, el("b", {}, percent(arm.accuracy))),
      el("td", {}, known(arm.low) ? `${percent(arm.low)} to ${percent(arm.high)}` : "judged"), el("td", {}, percent(arm.format)),
      el("td", {}, count(arm.unparsed)), el("td", {}, count(arm.cut)), el("td", { class: "wideonly" }, known(arm.accuracy) && armBar(arm)))))));
}

function retriesPanel({ arms, comparisons }) {
  const title = "Answers right at the first and at the second try";
  const columns = [["first", (one) => percent(one.acc_t1)], ["second", (one) => percent(one.acc_t2)], ["became right", (one) => count(one.wrong_to_right)], ["became wrong", (one) => count(one.right_to_wrong)], ["without a reflection", (one) => count(one.failed)]];
  return [el("h2", {}, title), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, el("table", {},
    el("thead", {}, el("tr", {}, el("td", {}), columns.map(([name]) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, arms.map((one) => el("tr", {}, el("th", { scope: "row" }, one.name), columns.map(([, value]) => el("td", {}, value(one)))))))),
    comparisonTable(comparisons, "Second tries, trained against base")];
}

function armBar(arm) {
  return svg("svg", { class: "armbar", viewBox: "0 0 160 16", role: "img", "aria-label": percent(arm.accuracy) },
    svg("rect", { class: "back", x: 0, y: 4, width: 160, height: 8, rx: 4 }),
    svg("rect", { class: "fill", x: 0, y: 4, width: 160 * arm.accuracy, height: 8, rx: 4 }),
    svg("line", { class: "span", x1: 160 * arm.low, x2: 160 * arm.high, y1: 8, y2: 8 }));
}

const tile = (name, value) => el("div", { class: "tile" }, el("div", { class: "value" }, value), el("div", { class: "dim" }, name));

function costPanel(run) {
  const cost = run.cost;
  const tiles = [
    known(cost.seconds) && cost.seconds > 0 && ["wall time", duration(cost.seconds)],
    cost.generated && ["tokens generated", count(cost.generated)],
    cost.trained && ["tokens trained on", count(cost.trained)],
    cost.calls && ["calls to the critic", count(cost.calls)],
    cost.tokens && ["tokens of the critic", count(cost.tokens)],
    cost.usd && ["dollars", "$" + cost.usd.toFixed(2)],
    cost.memory && ["memory at the peak", (cost.memory / 1e9).toFixed(2) + " GB"],
  ].filter((one) => one);
  return tiles.length ? [el("h2", {}, "What it took"), el("div", { class: "tiles" }, tiles.map(([name, value]) => tile(name, value)))] : [];
}

const factList = (facts) => el("dl", {}, Object.entries(facts).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

function livePanel(run) {
  const now = run.live;
  const bar = known(now.total) ? el("progress", { max: now.total, value: now.done, "aria-label": now.phase }) : null;
  const facts = [
    known(now.total) ? `${count(now.done)} of ${count(now.total)}` : now.done ? `${count(now.done)} so far` : null,
    known(now.wave) ? `wave ${now.wave + 1}${now.stage ? ", " + now.stage : ""}` : null,
    known(now.seconds_left) ? `about ${duration(now.seconds_left)} of learning left` : null,
    known(now.generating) ? `${count(now.generating)} tokens/s generated` : null,
    known(now.training) ? `${count(now.training)} tokens/s trained` : null,
    known(now.memory) ? `${(now.memory / 1e9).toFixed(2)} GB` : null,
  ].filter((one) => one);
  const stopped = run.state === "stopped";
  return el("div", { class: "live" },
    run.as_of && el("p", { class: "kicker" }, `When this file was written, ${run.as_of}`),
    el("p", { class: "says" }, stopped ? "Stopped" : now.phase[0].toUpperCase() + now.phase.slice(1)),
    bar, el("p", { class: "facts" }, facts.map((one) => el("span", {}, one))),
    stopped && el("p", {}, "Go on with: ", el("code", {}, `mlxreflect resume ${run.folder}`)));
}

// Open until one closes it, and then closed also when another problem is the latest.
function latestPanel(story) {
  return el("details", { open: !state.closed, ontoggle: (event) => { state.closed = !event.target.open; } },
    el("summary", {}, "The latest problem"), storyBody({ ...story, episodes: story.episodes.slice(-1) }));
}

// ---- charts -------------------------------------------------------------------------------------

function chart(spec) {
  const host = el("figure", { class: "chart" });
  const xs = [...new Set(spec.lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const view = { from: xs[0], to: xs[xs.length - 1], off: new Set(), cursor: -1 };
  const reset = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => { view.from = xs[0]; view.to = xs[xs.length - 1]; draw(); } }, "Whole");
  const plot = el("div", { class: "plot" });
  const legend = el("div", { class: "legend" }, spec.lines.map((line, i) => el("button", { type: "button", class: "key", "aria-pressed": "true", onclick: (event) => {
    if (view.off.has(i)) view.off.delete(i); else view.off.add(i);
    event.currentTarget.setAttribute("aria-pressed", String(!view.off.has(i)));
    draw();
  } }, svg("svg", { viewBox: "0 0 22 8", class: "swatch", "aria-hidden": "true" }, svg("line", { class: "line c" + (i % 6), x1: 1, x2: 21, y1: 4, y2: 4 })), line.name + (line.window ? `, mean of ${line.window}` : ""))));
  add(host, [el("figcaption", {}, el("h3", {}, spec.title), reset), legend, plot]);
  let drawing = null;
  function draw() {
    reset.hidden = view.from === xs[0] && view.to === xs[xs.length - 1];
    drawing = drawLines(spec, xs, view, plot.clientWidth || 480);
    plot.replaceChildren(drawing.root);
    steer(spec, xs, view, drawing, draw);
  }
  new ResizeObserver(() => { if (!drawing || drawing.width !== plot.clientWidth) draw(); }).observe(plot);
  return host;
}

const HEIGHT = 230, LEFT = 46, RIGHT = 14, TOP = 16, BOTTOM = 38;

function drawLines(spec, xs, view, width) {
  const inside = ([x, y]) => known(y) && x >= view.from && x <= view.to;
  const shown = spec.lines.map((line, i) => (view.off.has(i) ? [] : line.points.filter(inside)));
  const values = shown.flat().map((point) => point[1]);
  let low = Math.min(...values.slice(0, 1), ...extremes(values)), high = Math.max(...values.slice(0, 1), ...extremes(values));
  if (!values.length) [low, high] = [0, 1];
  if (spec.percent) { low = Math.min(low, low > 0.5 ? 0.5 : 0); high = high > 0.5 ? 1 : high * 1.1 || 1; }
  else { const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 1; low = low >= 0 && low - pad < 0 ? 0 : low - pad; high += pad; }
  const padX = (view.to - view.from) * 0.02 || 0.5;
  const x = (value) => LEFT + (width - LEFT - RIGHT) * (value - view.from + padX) / (view.to - view.from + 2 * padX);
  const y = (value) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low);
  const back = (px) => view.from - padX + (px - LEFT) * (view.to - view.from + 2 * padX) / (width - LEFT - RIGHT);
  const label = `${spec.title}: ${spec.lines.map((line) => `${line.name} from ${few(line.points[0][1])} to ${few(line.points[line.points.length - 1][1])}`).join("; ")}. Arrow keys read values, + and - zoom.`;
  const root = svg("svg", { class: "curves", viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, tabindex: 0, role: "img", "aria-label": label });
  const levels = ticks(low, high, 4), digits = Math.min(8, Math.max(0, Math.ceil(-Math.log10(levels[1] - levels[0] || 1) - 1e-9)));
  for (const tick of levels) add(root, [svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }), svg("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, spec.percent ? (100 * tick).toFixed(Math.max(0, digits - 2)) + "%" : tick.toFixed(digits).replace("-", "−"))]);
  for (const tick of ticks(view.from, view.to, Math.max(2, width / 90)).filter(Number.isInteger)) add(root, svg("text", { x: x(tick), y: HEIGHT - BOTTOM + 21, "text-anchor": "middle" }, placed(spec, tick)));
  add(root, svg("text", { x: LEFT - 8, y: HEIGHT - BOTTOM + 21, "text-anchor": "end" }, spec.x));
  let free = 0;
  for (const mark of spec.marks || []) {
    if (mark.x < view.from - padX || mark.x > view.to + padX) continue;
    add(root, svg("line", { class: "anew", x1: x(mark.x), x2: x(mark.x), y1: TOP, y2: HEIGHT - BOTTOM }, svg("title", {}, mark.what)));
    if (x(mark.x) >= free && x(mark.x) + 6 * mark.what.length < width) { add(root, svg("text", { class: "what", x: x(mark.x) + 3, y: TOP - 5 }, mark.what)); free = x(mark.x) + 6 * mark.what.length + 12; }
  }
  spec.lines.forEach((line, i) => {
    if (view.off.has(i)) return;
    const kind = "c" + (i % 6);
    const curve = line.means ? line.points.map(([at], k) => [at, line.means[k]]) : line.points;
    add(root, svg("path", { class: "line " + kind, d: path(curve.filter(([at]) => at >= view.from && at <= view.to), x, y) }));
    const faint = line.means ? " faint" : "";
    if (shown[i].length <= 1500 && (line.means || shown[i].length <= 60)) for (const [at, value] of shown[i]) add(root, svg("circle", { class: "dot " + kind + faint, cx: x(at), cy: y(value), r: line.means ? 2 : 3.2 }));
  });
  const cursor = svg("g", { class: "cursor" });
  const band = svg("rect", { class: "band", y: TOP, height: HEIGHT - TOP - BOTTOM, width: 0 });
  add(root, [band, cursor]);
  return { root, width, x, y, back, cursor, band };
}

function extremes(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  return values.length ? [low, high] : [];
}

function path(found, x, y) {
  let d = "", pen = "M";
  for (const [at, value] of found) {
    if (!known(value)) { pen = "M"; continue; }
    d += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  }
  return d;
}

// Records count waves from 0, people from 1.
function placed(spec, at) {
  return count(spec.x === "wave" ? at + 1 : at);
}

function ticks(low, high, about) {
  const raw = (high - low) / about || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((k) => k * power).find((size) => size >= raw) || raw;
  const found = [];
  for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + step * 1e-9 && found.length < 50; tick++) found.push(Number((tick * step).toPrecision(12)));
  return found;
}

// Pointer and keys of a chart: values at the cursor; dragging, + and − zoom, a double click ends it.
function steer(spec, xs, view, drawing, draw) {
  const { root, cursor, band, x, y, back } = drawing;
  const here = xs.filter((at) => at >= view.from && at <= view.to);
  let began = null;
  const nearest = (at) => here.reduce((best, one, i) => (Math.abs(one - at) < Math.abs(here[best] - at) ? i : best), 0);
  const local = (event) => event.clientX - root.getBoundingClientRect().left;
  function show(i) {
    view.cursor = i;
    const at = here[i];
    cursor.replaceChildren(svg("line", { x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM }));
    const rows = [];
    spec.lines.forEach((line, k) => {
      const index = view.off.has(k) ? -1 : line.points.findIndex((point) => point[0] === at);
      if (index < 0 || !known(line.points[index][1])) return;
      const value = line.points[index][1], mean = line.means && line.means[index];
      add(cursor, svg("circle", { class: "dot c" + (k % 6), cx: x(at), cy: y(value), r: 4.5 }));
      const said = spec.percent ? percent : few;
      rows.push(el("div", {}, svg("svg", { viewBox: "0 0 22 8", class: "swatch" }, svg("line", { class: "line c" + (k % 6), x1: 1, x2: 21, y1: 4, y2: 4 })), ` ${line.name} `, el("b", {}, said(value)), known(mean) && ` (mean ${said(mean)})`));
    });
    const name = Number.isInteger(at) ? `${spec.x} ${placed(spec, at)}` : at < 0 ? "before" : "at the end";
    const box = root.getBoundingClientRect();
    showTip([el("div", { class: "dim" }, name), ...rows], box.left + x(at), box.top + TOP);
  }
  const hide = () => { cursor.replaceChildren(); $("tip").hidden = true; };
  function zoom(from, to) {
    const kept = xs.filter((at) => at >= from && at <= to);
    if (kept.length > 1) { view.from = kept[0]; view.to = kept[kept.length - 1]; hide(); draw(); }
  }
  root.addEventListener("pointerdown", (event) => { if (event.pointerType !== "touch") { began = local(event); root.setPointerCapture(event.pointerId); } });
  root.addEventListener("pointermove", (event) => {
    if (began !== null) { const to = local(event); band.setAttribute("x", Math.min(began, to)); band.setAttribute("width", Math.abs(to - began)); }
    else if (here.length) show(nearest(back(local(event))));
  });
  root.addEventListener("pointerup", (event) => {
    const to = local(event), from = began;
    began = null;
    band.setAttribute("width", 0);
    if (from !== null && Math.abs(to - from) > 8) zoom(Math.min(back(from), back(to)), Math.max(back(from), back(to)));
  });
  root.addEventListener("pointerleave", () => { if (began === null) hide(); });
  root.addEventListener("dblclick", () => zoom(xs[0], xs[xs.length - 1]));
  root.addEventListener("blur", hide);
  root.addEventListener("keydown", (event) => {
    const middle = here[Math.max(0, view.cursor)] ?? view.from, size = (view.to - view.from) / 4;
    const step = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 }[event.key];
    if (step && here.length) show(Math.min(here.length - 1, Math.max(0, view.cursor + step)));
    else if (event.key === "+") zoom(middle - size, middle + size);
    else if (event.key === "-" || event.key === "Escape") zoom(xs[0], xs[xs.length - 1]);
    else return;
    event.preventDefault();
    if (event.key.length === 1 || event.key === "Escape") document.querySelectorAll("svg.curves").forEach((one) => { if (one.getAttribute("aria-label") === root.getAttribute("aria-label")) one.focus(); });
  });
}

function showTip(children, left, top) {
  const tip = $("tip");
  tip.replaceChildren(...children);
  tip.hidden = false;
  const right = left + tip.offsetWidth + 24 > innerWidth;
  tip.style.left = Math.max(8, right ? left - tip.offsetWidth - 14 : left + 14) + "px";
  tip.style.top = Math.max(8, top) + "px";
}

// ---- tables of problems -------------------------------------------------------------------------

const COLUMNS = {
  learned: ["question", "status", "change", "waves", "attempts", "rewrites", "error"],
  held_out: ["question", "change", "answers", "error"],
};
const NAMES = { waves: "wave", change: "answer", part: "evaluation", error: "error", cut: "cut off", leak: "leak", question: "problem" };
// Of a problem that was learned from: of its first attempts in the first epoch and in the last one.
const named = (column, view) => (column === "change" && view === "learned" ? "first attempt, first → last epoch" : NAMES[column] || column);

// What is chosen in a table stays chosen while one reads a story, and while new rows arrive.
function tableOf(number, view) {
  const data = state.tree.runs[number].tables[view];
  if (!data) return null;
  const key = `${number}/${view}`;
  let table = state.tables.get(key);
  if (!table) state.tables.set(key, (table = { filters: {}, search: "", sort: null, down: false, scroll: 0, current: 0 }));
  if (table.data !== data) {
    table.data = data;
    table.at = Object.fromEntries(data.columns.map((name, i) => [name, i]));
    table.texts = data.rows.map((row) => [row[0], row[1], ...(row[table.at.answers] || [])].join("\n").toLowerCase());
  }
  return table;
}

function choose(table) {
  const { at, data, texts } = table, wanted = table.search.toLowerCase();
  const tests = Object.entries(table.filters).filter(([, value]) => value !== "" && value !== false).map(([name, value]) => {
    const i = at[name];
    if (name === "waves") return (row) => row[i].includes(Number(value));
    return value === true ? (row) => row[i] > 0 : (row) => row[i] === value;
  });
  const found = [];
  data.rows.forEach((row, i) => { if ((!wanted || texts[i].includes(wanted)) && tests.every((test) => test(row))) found.push(i); });
  if (table.sort) {
    const column = at[table.sort], sign = table.down ? -1 : 1;
    const value = (i) => { const cell = data.rows[i][column]; return Array.isArray(cell) ? cell[cell.length - 1] ?? "" : cell; };
    found.sort((a, b) => { const x = value(a), y = value(b); return (x < y ? -sign : x > y ? sign : a - b); });
  }
  return found;
}

function tablePage(at) {
  heading(at);
  const table = tableOf(at.number, at.view);
  const list = (name) => [...new Set(table.data.rows.flatMap((row) => row[table.at[name]] ?? ""))].filter((one) => one !== "");
  const choices = ["status", "part", "change", "waves", "error"].filter((name) => name in table.at).map((name) => [name, list(name).sort((a, b) => (a < b ? -1 : 1))]).filter(([, values]) => values.length > 1);
  section("filters", choices, () => filterBar(table, choices, at));
  if (!$("part-rows") || state.drawnRows !== table.data) {
    state.drawnRows = table.data;
    state.drawn.delete("rows");
  }
  section("rows", [at.number, at.view], () => rowsPanel(table, at));
}

function filterBar(table, choices, at) {
  const change = () => refresh(table);
  const search = el("input", { type: "search", placeholder: "Search problems and answers", "aria-label": "Search problems and answers", oninput: (event) => { table.search = event.target.value; change(); } });
  search.value = table.search;
  const selects = choices.map(([name, values]) => {
    const select = el("select", { "aria-label": named(name, at.view), onchange: (event) => { table.filters[name] = event.target.value; change(); } },
      el("option", { value: "" }, `any ${named(name, at.view)}`),
      values.map((value) => el("option", { value }, name === "status" ? (table.data.words || {})[value] || value : name === "waves" ? `wave ${value + 1}` : spaced(value))));
    select.value = table.filters[name] ?? "";
    return select;
  });
  const flags = ["cut", "leak"].filter((name) => name in table.at && table.data.rows.some((row) => row[table.at[name]])).map((name) => {
    const box = el("input", { type: "checkbox", onchange: (event) => { table.filters[name] = event.target.checked; change(); } });
    box.checked = Boolean(table.filters[name]);
    return el("label", { class: "flag" }, box, " " + named(name));
  });
  const clear = el("button", { type: "button", class: "quiet", onclick: () => { table.filters = {}; table.search = ""; state.drawn.delete("filters"); state.drawn.delete("rows"); render(); } }, "Clear");
  return el("div", { class: "filters" }, search, selects, flags, clear, el("span", { id: "found", class: "dim", role: "status" }));
}

function rowsPanel(table, at) {
  const columns = COLUMNS[at.view].filter((name) => name !== "error" || table.data.rows.some((row) => row[table.at.error]));
  const head = el("div", { class: "row head", role: "row" }, columns.map((name) => el("div", { class: "cell col-" + name, role: "columnheader", "aria-sort": "none", "data-column": name },
    el("button", { type: "button", class: "sort", onclick: () => { table.down = table.sort === name && !table.down; table.sort = name; refresh(table); } }, name === "answers" ? table.data.arms.join(" · ") : named(name, at.view)))));
  const space = el("div", { class: "space", role: "presentation" });
  const body = el("div", { class: "body", tabindex: 0, role: "rowgroup", "aria-label": "Rows: arrow keys choose, Enter opens" }, space);
  const grid = el("div", { class: `grid ${at.view}`, role: "table", "aria-label": VIEWS[at.view] }, el("div", { role: "rowgroup" }, head), body);
  Object.assign(table, { grid, body, space, columns, place: at });
  body.addEventListener("scroll", () => { table.scroll = body.scrollTop; paint(table); });
  body.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -1e9, End: 1e9 }[event.key];
    if (step) {
      table.current = Math.max(0, Math.min(table.found.length - 1, table.current + step));
      const top = table.current * ROW;
      if (top < body.scrollTop) body.scrollTop = top;
      if (top + ROW > body.scrollTop + body.clientHeight) body.scrollTop = top + ROW - body.clientHeight;
      paint(table);
    } else if (event.key === "Enter" && event.target === body && table.found.length) location.hash = storyLink(table, table.found[table.current]);
    else return;
    event.preventDefault();
  });
  requestAnimationFrame(() => {
    head.style.paddingRight = 18 + body.offsetWidth - body.clientWidth + "px";
    refresh(table, true);
    body.scrollTop = table.scroll;
    paint(table);
  });
  return grid;
}

const storyLink = (table, i) => link(table.place.number, table.place.view, i + "-" + table.data.rows[i][0]);

// What is measured is read before anything is written: else the browser lays the page out each time.
function refresh(table, kept) {
  table.high = table.body.clientHeight || 600;
  table.found = choose(table);
  if (!kept) {
    table.current = 0;
    if (table.scroll) table.body.scrollTop = table.scroll = 0;
  }
  table.space.style.height = table.found.length * ROW + "px";
  table.grid.setAttribute("aria-rowcount", table.found.length + 1);
  for (const cell of table.grid.querySelectorAll("[data-column]")) cell.setAttribute("aria-sort", cell.dataset.column !== table.sort ? "none" : table.down ? "descending" : "ascending");
  if ($("found")) $("found").textContent = `${count(table.found.length)} of ${counted(table.data.rows.length, "problem")}`;
  paint(table, kept ? table.body.scrollTop : 0);
}

// Only the rows that can be seen are elements.
function paint(table, top = table.body.scrollTop) {
  const from = Math.max(0, Math.floor(top / ROW) - 4);
  const to = Math.min(table.found.length, from + Math.ceil(table.high / ROW) + 8);
  const rows = [];
  for (let k = from; k < to; k++) {
    const i = table.found[k];
    const row = el("div", { class: "row" + (k === table.current ? " current" : ""), role: "row", "aria-rowindex": k + 2, onclick: () => { table.current = k; location.hash = storyLink(table, i); } },
      table.columns.map((name) => el("div", { class: "cell col-" + name, role: "cell" }, cell(table, table.data.rows[i], name, i))));
    row.style.top = k * ROW + "px";
    rows.push(row);
  }
  table.space.replaceChildren(...rows);
}

function cell(table, row, name, i) {
  const value = row[table.at[name]];
  if (name === "question") return el("a", { href: storyLink(table, i), tabindex: -1 }, value || row[0]);
  if (name === "status") return el("span", { class: "status " + value }, (table.data.words || {})[value] || value, value === "solved_first" && row[table.at.change].includes("→") && ", in the last epoch");
  if (name === "change") return el("span", { class: "change " + ({ "wrong → right": "good", preferred: "good", "right → wrong": "bad", "not preferred": "bad" }[value] || "") }, value);
  if (name === "waves") return value.length > 3 ? `${value[0] + 1} … ${value[value.length - 1] + 1}` : value.map((wave) => wave + 1).join(", ");
  if (name === "answers") return table.data.arms.map((arm, k) => [k ? el("span", { class: "dim" }, " · ") : null, value[k] ?? el("span", { class: "dim" }, "none")]);
  return spaced(value);
}

// ---- prompts that were asked again and again -----------------------------------------------------

function probesPage(at) {
  heading(at);
  const { rows } = at.run.tables.probes;
  Promise.all(rows.map((_, i) => fetchStory(at.number, at.view, i))).then((found) => {
    if (state.at === keyOf(at)) section("probes", found, () => found.filter((one) => one).map(probe));
  }).catch(unreadable);
}

function probe(story) {
  const when = (wave) => (wave === null ? "before training" : `wave ${wave + 1}`);
  return el("article", { class: "asked" }, el("h2", {}, "You asked"), prose(story.prompt, "Prompt"),
    el("div", { class: "over", tabindex: 0, role: "region", "aria-label": `Answers to: ${story.prompt.slice(0, 80)}` }, story.answers.map((one) => el("section", { class: "turn" },
      el("h3", {}, when(one.since), one.until !== one.since && ` to ${when(one.until)}`, el("span", { class: "dim" }, ` · ${counted(one.tokens, "token")}`, one.cut && " · cut off at the token limit")),
      prose(one.text, when(one.since))))));
}

// ---- the knowledge graph ------------------------------------------------------------------------

const WIDE = 900, HIGH = 560;

function graphPage(at) {
  heading(at);
  section("graph", at.run.graph, () => {
    const { sentence, nodes, edges } = at.run.graph;
    const relations = nodes.map((_, i) => edges.filter(([from, to]) => from === i || to === i).map(([from, to, said, times]) => `${nodes[from][0]} ${said ? `— ${said} →` : "→"} ${nodes[to][0]}${times > 1 ? ` (${count(times)} times)` : ""}`));
    return [
      el("p", {}, sentence + (edges.length ? "." : "")),
      el("div", { class: "graph" }, drawGraph(nodes, edges, relations),
        el("div", { class: "nodes", tabindex: 0, role: "region", "aria-label": "Nodes and their relations" },
          nodes.map(([name, degree], i) => el("details", {}, el("summary", {}, name, el("span", { class: "dim" }, ` ${counted(degree, "relation")}`)),
            el("ul", {}, relations[i].map((one) => el("li", {}, one)), relations[i].length < degree && el("li", { class: "dim" }, `${count(degree - relations[i].length)} with nodes that are not drawn`)))))),
    ];
  });
}

function drawGraph(nodes, edges, relations) {
  const places = layOut(nodes.length, edges);
  const root = svg("svg", { class: "net", viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `The ${counted(nodes.length, "best connected node")} of the graph, which are listed beside it` });
  const lines = edges.map(([from, to]) => svg("line", { x1: places[from][0], y1: places[from][1], x2: places[to][0], y2: places[to][1] }));
  const near = (i) => edges.forEach(([from, to], k) => lines[k].setAttribute("class", from === i || to === i ? "near" : ""));
  const leave = () => { near(-1); $("tip").hidden = true; };
  const most = Math.max(...nodes.map((node) => node[1]));
  add(root, [lines, nodes.map(([name, degree], i) => {
    const [x, y] = places[i], left = x > WIDE * 0.8, size = 4 + 7 * Math.sqrt(degree / most);
    const letters = [...name]; // a slice of a string may end in half an emoji
    const show = (event) => { near(i); showTip([el("b", {}, name), ...relations[i].slice(0, 12).map((one) => el("div", {}, one))], event.clientX, event.clientY); };
    return svg("g", { onpointerenter: show, onpointerleave: leave }, svg("circle", { cx: x, cy: y, r: size }),
      svg("text", { x: x + (left ? -1 : 1) * (size + 3), y: y + 4, "text-anchor": left ? "end" : "start" }, letters.length > 22 ? letters.slice(0, 21).join("") + "…" : name));
  })]);
  return root;
}

// Where n nodes stand: all push each other away, edges pull, less from step to step. The start is a
// spiral, so that the same graph is always drawn alike.
function layOut(n, edges) {
  const spread = Math.sqrt(WIDE * HIGH / n) * 0.7;
  const places = [...Array(n).keys()].map((i) => { const r = spread * Math.sqrt(i + 0.5), turn = i * 2.399963; return [r * Math.cos(turn), r * Math.sin(turn)]; });
  for (let step = 0; step < 200; step++) {
    const moves = places.map(([x, y]) => [-x * 0.02, -y * 0.035]);
    const push = (i, j, strength) => { const dx = places[i][0] - places[j][0], dy = places[i][1] - places[j][1], far = Math.hypot(dx, dy) || 1, by = strength(far) / far; moves[i][0] += dx * by; moves[i][1] += dy * by; moves[j][0] -= dx * by; moves[j][1] -= dy * by; };
    for (let i = 0; i < n; i++) for (let j = 0; j < i; j++) push(i, j, (far) => spread * spread / far);
    for (const [from, to] of edges) push(from, to, (far) => -far * far / spread);
    const most = spread * (1 - step / 200);
    places.forEach((place, i) => { const by = Math.min(1, most / (Math.hypot(...moves[i]) || 1)); place[0] += moves[i][0] * by; place[1] += moves[i][1] * by; });
  }
  const fit = (axis, from, to) => { const all = places.map((place) => place[axis]), low = Math.min(...all), size = Math.max(...all) - low || 1; places.forEach((place) => { place[axis] = Math.round(10 * (from + (to - from) * (place[axis] - low) / size)) / 10; }); };
  fit(0, 30, WIDE - 60);
  fit(1, 20, HIGH - 20);
  return places;
}

// ---- one problem's story ------------------------------------------------------------------------

function storyPage(at) {
  const { run, number, view, story } = at;
  const table = tableOf(number, view), row = Number(story.split("-")[0]);
  heading(at);
  if (!table.data.rows[row]) { location.hash = link(number, view); return; }
  table.found = table.found || choose(table);
  const k = table.found.indexOf(row);
  const step = (by) => (table.found[k + by] === undefined ? null : link(number, view, table.found[k + by] + "-" + table.data.rows[table.found[k + by]][0]));
  section("steps", [story, table.found.length], () => el("nav", { class: "steps", "aria-label": "Problems" },
    el("a", { href: link(number, view) }, "← All problems"),
    el("span", {}, k >= 0 && step(-1) && el("a", { href: step(-1), rel: "prev" }, "Previous"), k >= 0 && step(1) && el("a", { href: step(1), rel: "next" }, "Next"))));
  fetchStory(number, view, row).then((found) => {
    if (state.at === keyOf(at) && found) section("story", found, () => storyBody(found));
  }).catch(unreadable);
}

function storyBody(story) {
  if (story.kind === "held_out") return heldOutStory(story);
  return [
    el("article", { class: "asked" }, el("h2", {}, "The problem"), el("p", { class: "dim" }, `${story.id}, ${story.task}`), story.asked.slice(-1).map((one) => prose(String(one.content), "Question")),
      story.gold !== null && el("p", {}, el("span", { class: "dim" }, "expected "), el("b", {}, story.gold)), prompts(story.asked.slice(0, -1), "The instruction before it")),
    ...story.episodes.map(episode),
  ];
}

function prompts(messages, name) {
  return messages && messages.length ? el("details", {}, el("summary", {}, name), messages.map((one) => [el("p", { class: "dim" }, one.role), prose(String(one.content), one.role)])) : null;
}

function episode(one) {
  return el("article", { class: "episode" },
    el("h2", {}, `Epoch ${one.epoch}, wave ${one.wave + 1}`, one.tier && el("span", { class: "dim" }, ` ${one.tier} critic`)),
    one.turns.map((turn) => [turnBox(turn, one), made(one.examples.filter((example) => isPair(example) && example.turns[0] === turn.i))]),
    made(one.examples.filter((example) => !isPair(example))),
    el("p", { class: "ended" }, el("span", { class: "status " + one.status }, one.ended), one.solved !== null && one.solved !== undefined && `, turn ${one.solved}`));
}

const isPair = (example) => example.kind === "preference" && example.turns.length === 2;
const made = (examples) => examples.map((example) => el("p", { class: "example" }, exampleSays(example)));

function exampleSays(example) {
  if (isPair(example)) return `Trained on a pair: turn ${example.turns[0]} preferred to turn ${example.turns[1]}`;
  if (example.kind === "group") return `Trained by GRPO, its answers worth ${(example.rewards || []).map(few).join(", ")}`;
  return `Trained by SFT on turn ${example.turns.join(", ")}${example.forced ? ", forced: it was on the bucket list to the last" : ""}`;
}

const SHOWN = { verdict: "shown the verdict", gold_answer: "shown the right answer", gold_solution: "shown a solution" };

function turnBox(turn, of) {
  const before = of.turns.find((one) => one.i === turn.rewrites);
  const facts = [turn.actor, turn.tokens && counted(turn.tokens, "token"), turn.cut && "cut off at the token limit", SHOWN[turn.shown], before && `differences to turn ${before.i}`];
  const ok = turn.verdict && turn.verdict.correct && turn.verdict.format_ok;
  return el("section", { class: "turn" + (turn.verdict ? (ok ? " pass" : " fail") : "") },
    el("h3", {}, `${turn.i} ${turn.role}`, el("span", { class: "dim" }, facts.filter((one) => one).map((one) => ` · ${one}`))),
    turn.text && (before ? rewriting(before.text, turn.text) : prose(turn.text, turn.role)),
    turn.error && el("p", { class: "error" }, `${turn.text ? "The reply is of no use" : "The call failed"}: ${turn.error}`),
    turn.verdict && verdictLine(turn.verdict.correct, turn.verdict.format_ok, turn.verdict.reason, turn.verdict.source),
    prompts(turn.messages, "What was asked"));
}

function verdictLine(correct, format, reason, source) {
  const ok = correct && format;
  return el("p", { class: "reading " + (ok ? "good" : "bad") }, `${ok ? "✓" : "✗"} ${correct ? "right" : "wrong"}, ${format ? "format kept" : "format broken"}`,
    reason && `: ${reason}`, source && source !== "grader" && ` (${source})`);
}

function rewriting(before, after) {
  if (before.length + after.length > 4 * LONG) return prose(after, "Rewrite");
  return el("pre", { class: "prose", tabindex: 0, role: "region", "aria-label": "Rewrite, with differences" }, differences(before, after).map(([kind, text]) =>
    kind === "=" ? text : el(kind === "-" ? "del" : "ins", {}, text)));
}

// Lines first, and inside of lines that differ, words.
function differences(before, after) {
  const lines = (text) => text.match(/[^\n]*\n|[^\n]+$/g) || [];
  const words = (text) => text.match(/\s+|[\p{L}\p{N}_.]+|[^\s\p{L}\p{N}_.]/gsu) || [];
  const found = [];
  const push = (kind, text) => { if (!text) return; const last = found[found.length - 1]; if (last && last[0] === kind) last[1] += text; else found.push([kind, text]); };
  let old = "", now = "";
  const flush = () => { for (const [kind, text] of phrases(align(words(old), words(now)))) push(kind, text); old = now = ""; };
  for (const [kind, text] of align(lines(before), lines(after))) {
    if (kind === "=") { flush(); push("=", text); } else if (kind === "-") old += text; else now += text;
  }
  flush();
  return found;
}

// Words that follow each other and were all changed are one change: what was removed, then what was
// added, with a space between both.
function phrases(parts) {
  const found = [];
  let old = "", now = "", gap = "";
  const flush = () => {
    if (old) found.push(["-", old]);
    if (old && now && !/\s$/.test(old) && !/^\s/.test(now)) found.push(["=", " "]);
    if (now) found.push(["+", now]);
    if (gap) found.push(["=", gap]);
    old = now = gap = "";
  };
  for (const [kind, text] of parts) {
    if (kind === "=" && (old || now) && !gap && /^[^\S\n]+$/.test(text)) { gap = text; continue; }
    if (kind === "=") { flush(); found.push(["=", text]); continue; }
    if (gap) { old += gap; now += gap; gap = ""; }
    if (kind === "-") old += text; else now += text;
  }
  flush();
  return found;
}

// A longest common subsequence; too long a middle is taken as wholly another.
function align(a, b) {
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const left = a.slice(start, a.length - end), right = b.slice(start, b.length - end), n = left.length, m = right.length;
  const found = a.slice(0, start).map((one) => ["=", one]);
  if (n * m > 4e6) found.push(["-", left.join("")], ["+", right.join("")]);
  else {
    const size = new Uint16Array((n + 1) * (m + 1));
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) size[i * (m + 1) + j] = left[i] === right[j] ? size[(i + 1) * (m + 1) + j + 1] + 1 : Math.max(size[(i + 1) * (m + 1) + j], size[i * (m + 1) + j + 1]);
    for (let i = 0, j = 0; i < n || j < m;) {
      if (i < n && j < m && left[i] === right[j]) { found.push(["=", left[i]]); i++; j++; }
      else if (i < n && (j === m || size[(i + 1) * (m + 1) + j] >= size[i * (m + 1) + j + 1])) found.push(["-", left[i++]]);
      else found.push(["+", right[j++]]);
    }
  }
  return found.concat(a.slice(a.length - end).map((one) => ["=", one]));
}

function heldOutStory(story) {
  const lines = (value) => Object.entries(value).map(([name, one]) => `${name}: ${Array.isArray(one) ? one.join(" ") : one}`);
  const { question, choices } = story.fields;
  const asked = (question === undefined ? lines(story.fields) : [question, ...lines(choices || {})]).join("\n");
  return [
    el("article", { class: "asked" }, el("h2", {}, "The problem"), el("p", { class: "dim" }, `${story.id}, ${story.part}`), prose(asked, "Question"),
      story.gold !== null && el("p", {}, el("span", { class: "dim" }, "expected "), el("b", {}, story.gold))),
    el("div", { class: "beside" }, story.arms.map((arm) => el("article", { class: "arm" }, el("h2", {}, arm.name), arm.samples.map((one, i) =>
      el("section", { class: "turn " + (arm.open ? "" : one.correct && one.format ? "pass" : "fail") },
        el("h3", {}, arm.samples.length > 1 ? `sample ${i + 1}` : "answer", el("span", { class: "dim" }, known(one.tokens) ? ` · ${counted(one.tokens, "token")}` : "", one.cut ? " · cut off at the token limit" : "")),
        prose(one.text, arm.name),
        el("p", {}, el("span", { class: "dim" }, "read as "), one.parsed === null ? "no answer" : el("code", {}, one.parsed), known(one.score) && ` (F1 ${few(one.score)})`),
        !arm.open && verdictLine(one.correct, one.format)))))),
    story.why && el("p", {}, el("span", { class: "dim" }, `the judge: ${story.change}, because `), story.why),
  ];
}

// ---- recipe, and several runs -------------------------------------------------------------------

function recipePage(at) {
  heading(at);
  const { run } = at, { rows, of } = run.keys;
  section("recipe", rows, () => {
    const body = (all) => rows.filter((row) => all || !of || row.length > 2).map((row) => el("tr", { class: row.length > 2 ? "differs" : null }, el("th", { scope: "row" }, row[0]), row.slice(1).map((value) => el("td", {}, el("code", {}, value))), of && row.length < 3 && el("td", {})));
    const differ = rows.filter((row) => row.length > 2).length;
    const table = el("tbody", {}, body(!differ));
    const box = el("input", { type: "checkbox", onchange: (event) => table.replaceChildren(...body(event.target.checked)) });
    return [
      of && el("p", {}, differ ? `${counted(differ, "key")} ${differ === 1 ? "differs" : "differ"} from ${of}. ` : `No key differs from ${of}. `, differ > 0 && el("label", { class: "flag" }, box, " show all keys")),
      el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Keys" }, el("table", { class: "keys" }, of && el("thead", {}, el("tr", {}, ["key", `this ${run.kind}`, of].map((name) => el("th", { scope: "col" }, name)))), table)),
    ];
  });
}

function comparePage() {
  const runs = state.tree.runs, against = state.tree.against;
  section("compare", runs.map((run) => [run.name, run.state, run.verdicts]), () => [
    el("div", { class: "title" }, el("h1", {}, counted(runs.length, "run"))),
    el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Runs" }, el("table", {},
      el("thead", {}, el("tr", {}, ["run", "recipe", "policy", "state", "base → trained", "difference"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, runs.map((run, i) => { const one = run.verdicts[0]; return el("tr", {}, el("th", { scope: "row" }, el("a", { href: link(i, "overview") }, run.name)),
        el("td", {}, run.facts.recipe || run.facts.objective || run.kind), el("td", {}, run.facts.policy || run.facts.model || "–"), el("td", {}, stateOf(run)),
        el("td", {}, one ? `${percent(one.accuracy_a)} → ${percent(one.accuracy_b)}` : "–"), el("td", {}, one ? `${points(one.difference)} (${points(one.ci_low)} to ${points(one.ci_high)})` : "–")); }))))]);
  section("against", against, () => against && [el("h2", {}, "Trained against trained, on the same problems"), against.faults.map((one) => el("p", { class: "notice" }, `Not compared: ${one}`)),
    against.comparisons.length ? comparisonTable(against.comparisons, "Paired comparison with the first") : null, against.comparisons.map((one) => el("p", { class: "sentence" }, one.sentence))]);
  section("curves", runs.map((run) => run.charts), () => { const found = curvesOver(runs); return found.length ? [el("h2", {}, "Curves over each other"), el("div", { class: "charts" }, found.map(chart))] : []; });
  section("keys", runs.map((run) => run.keys.rows), () => keysBeside(runs));
}

function curvesOver(runs) {
  const specs = new Map();
  runs.forEach((run) => run.charts.forEach((one) => one.lines.forEach((line, i) => {
    if (i && one.id !== "accuracy") return;
    const key = `${one.id}/${line.name}`;
    if (!specs.has(key)) specs.set(key, { ...one, title: one.lines.length > 1 ? `${one.title}: ${line.name}` : one.title, marks: [], lines: [] });
    specs.get(key).lines.push({ ...line, name: run.name });
  })));
  return [...specs.values()].filter((one) => one.lines.length > 1);
}

function keysBeside(runs) {
  const maps = runs.map((run) => new Map(run.keys.rows.map((row) => [row[0], row[1]])));
  const keys = [...new Set(maps.flatMap((map) => [...map.keys()]))].filter((key) => new Set(maps.map((map) => map.get(key))).size > 1);
  if (!keys.length) return [];
  return [el("h2", {}, "Where their recipes differ"), el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Keys that differ" }, el("table", { class: "keys" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), runs.map((run) => el("th", { scope: "col" }, run.name)))),
    el("tbody", {}, keys.map((key) => el("tr", {}, el("th", { scope: "row" }, key), maps.map((map) => el("td", {}, el("code", {}, map.get(key) ?? "–"))))))))];
}

// ---- where data comes from ----------------------------------------------------------------------

async function fetchStory(number, view, row) {
  if (state.server) {
    const answer = await fetch(`story?run=${number}&table=${view}&row=${row}`);
    return answer.json();
  }
  const wanted = state.tree.runs[number].tables[view].first + row, starts = state.tree.blocks;
  let block = starts.length - 1;
  while (block > 0 && starts[block] > wanted) block--;
  if (!state.stories.has(block)) {
    if (state.stories.size > 8) state.stories.clear();
    const packed = Uint8Array.from(atob($("block-" + block).textContent), (letter) => letter.charCodeAt(0));
    state.stories.set(block, unpack(packed).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))));
  }
  return (await state.stories.get(block))[wanted - starts[block]];
}

async function unpack(packed) {
  if (typeof DecompressionStream === "undefined") return inflate(packed.subarray(10));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// DEFLATE (RFC 1951), for a browser that has no DecompressionStream. bytes: behind gzip's header.
function inflate(bytes) {
  let at = 0, bit = 0, n = 0, out = new Uint8Array(1 << 20);
  const take = (count) => { let value = 0; for (let i = 0; i < count; i++) { value |= ((bytes[at] >> bit) & 1) << i; if (++bit === 8) { bit = 0; at++; } } return value; };
  const put = (byte) => { if (n === out.length) { const more = new Uint8Array(2 * n); more.set(out); out = more; } out[n++] = byte; };
  const tree = (lengths) => {
    const counts = new Array(16).fill(0), symbols = [], offsets = [0, 0];
    for (const length of lengths) counts[length]++;
    counts[0] = 0;
    for (let i = 1; i < 15; i++) offsets[i + 1] = offsets[i] + counts[i];
    lengths.forEach((length, symbol) => { if (length) symbols[offsets[length]++] = symbol; });
    return () => { let code = 0, first = 0, index = 0; for (let i = 1; i < 16; i++) { code |= take(1); if (code - counts[i] < first) return symbols[index + code - first]; index += counts[i]; first = (first + counts[i]) << 1; code <<= 1; } throw new Error("damaged"); };
  };
  const BASE = [3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258];
  const EXTRA = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
  const FAR = [1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577];
  for (let last = 0; !last;) {
    last = take(1);
    const kind = take(2);
    if (kind === 0) {
      if (bit) { bit = 0; at++; }
      const length = bytes[at] | (bytes[at + 1] << 8);
      for (let i = 0; i < length; i++) put(bytes[at + 4 + i]);
      at += 4 + length;
      continue;
    }
    let literal = tree([...Array(288).keys()].map((i) => (i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8))), distance = tree(new Array(30).fill(5));
    if (kind === 2) {
      const literals = take(5) + 257, distances = take(5) + 1, codes = take(4) + 4, sizes = new Array(19).fill(0), lengths = [];
      for (let i = 0; i < codes; i++) sizes[[16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15][i]] = take(3);
      const size = tree(sizes);
      while (lengths.length < literals + distances) {
        const symbol = size();
        if (symbol < 16) lengths.push(symbol);
        else { const value = symbol === 16 ? lengths[lengths.length - 1] : 0, times = symbol === 16 ? 3 + take(2) : symbol === 17 ? 3 + take(3) : 11 + take(7); for (let i = 0; i < times; i++) lengths.push(value); }
      }
      literal = tree(lengths.slice(0, literals));
      distance = tree(lengths.slice(literals));
    }
    for (let symbol = literal(); symbol !== 256; symbol = literal()) {
      if (symbol < 256) { put(symbol); continue; }
      const length = BASE[symbol - 257] + take(EXTRA[symbol - 257]), d = distance(), back = FAR[d] + take(d < 2 ? 0 : (d >> 1) - 1);
      for (let i = 0; i < length; i++) put(out[n - back]);
    }
  }
  return out.subarray(0, n);
}

function notice(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text;
}

async function follow() {
  try {
    const answer = await fetch(`tree?seen=${state.version}`);
    if (!answer.ok) throw new Error(String(answer.status));
    const told = await answer.json();
    notice(told.fault);
    if (told.tree) {
      state.version = told.version;
      state.tree = told.tree;
      document.title = told.tree.runs.map((run) => run.name).join(", ") || "mlxreflect";
      render();
    }
  } catch {
    notice("The server of this page has stopped. What was there stays; start it again with: mlxreflect view");
  }
  setTimeout(follow, EVERY);
}

// Dark or light as the system says, until one chooses.
function theme(next) {
  const kept = () => { try { return localStorage.getItem("mlxreflect-theme"); } catch { return null; } };
  const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
  if (next) try { localStorage.setItem("mlxreflect-theme", next); } catch { /* then for this page only */ }
  const now = next || kept() || (dark() ? "dark" : "light");
  document.documentElement.dataset.theme = now;
  $("theme").setAttribute("aria-label", now === "dark" ? "Switch to light" : "Switch to dark");
}

theme();
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
addEventListener("hashchange", render);
state.tree = JSON.parse($("tree").textContent);
state.server = state.tree === null;
if (state.server) follow();
else render();
})();
