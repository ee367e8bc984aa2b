"""The page of the error explorer without its data: markup, style and script. Plain JavaScript, nothing loaded from elsewhere.

Cards are built fifty at a time as the reader scrolls, so that ten thousand utterances open as quickly as a hundred. The state of
the controls stands behind the `#` of the address, so that a view can be linked to. All text enters as text, never markup.
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>__TITLE__</title>
<style>
body{font:14px/1.45 system-ui,sans-serif;color:#222;margin:0;background:#fafafa}
header{position:sticky;top:0;background:#fff;border-bottom:1px solid #ddd;padding:8px 16px;z-index:1}
h1{font-size:17px;margin:0 0 6px}.note{color:#777;font-weight:normal;font-size:12px;margin-left:8px}
label{margin-right:10px;font-size:13px;white-space:nowrap}select,input{font:inherit;padding:1px 3px;max-width:190px}
#summary{margin-top:6px;font-size:13px;color:#444}
main{padding:8px 16px}
article{background:#fff;border:1px solid #e2e2e2;border-radius:5px;padding:7px 11px;margin:7px 0;
content-visibility:auto;contain-intrinsic-size:auto 105px}
.head{font-size:12px;color:#555;display:flex;flex-wrap:wrap;gap:4px 12px;align-items:center}
.head b{color:#111;font-size:13px}.flag{background:#fff2cc;border:1px solid #e0c060;border-radius:3px;padding:0 5px}
.words{display:flex;flex-wrap:wrap;margin-top:5px;row-gap:5px}
.w{display:inline-flex;flex-direction:column;padding:0 5px;border-radius:3px;min-height:2.9em;position:relative}
.w span{min-height:1.45em}.w i{position:absolute;right:1px;bottom:-3px;font:bold 9px sans-serif}
.S,.D,.I{padding-right:11px;margin-right:1px}
.S{background:#fde3c0}.D{background:#f7cdc4}.I{background:#cfe4f7}.D span:first-child{text-decoration:line-through}
.key{padding:0 6px;border-radius:3px;margin-right:4px}
.bars{display:inline-flex;gap:2px;align-items:flex-end;height:20px}
.bars span{width:12px;background:#0072B2;display:block;min-height:1px}.bars span.top{background:#D55E00}
.clip{display:inline-flex;gap:12px;align-items:center}
audio{height:26px;vertical-align:middle}img{height:62px;width:240px;border:1px solid #e2e2e2}#more{padding:14px;text-align:center;color:#777}
</style></head><body>
<header><h1>__TITLE__<span class="note">__NOTE__</span></h1>
<div id="controls">
<label>find <input id="find" type="search" placeholder="word or id"></label>
<label>group <select id="group"></select> <select id="value"></select></label>
<label>errors <select id="error"><option value="">all</option><option value="some">with errors</option>
<option value="none">without errors</option><option value="S">substitutions</option><option value="D">deletions</option>
<option value="I">insertions</option></select></label>
<label>flag <select id="flag"></select></label>
<label id="expertlabel">expert <select id="expert"></select></label>
<label>sort <select id="sort"><option value="errors">most errors</option><option value="wer">highest WER</option>
<option value="best">lowest WER</option><option value="id">utterance</option><option value="long">longest</option>
<option value="unsure">least sure routing</option></select></label></div>
<div id="summary" aria-live="polite"></div></header>
<main><div>top: reference, bottom: hypothesis
<span class="key S">substituted</span><span class="key D">deleted</span><span class="key I">inserted</span></div>
<div id="list"></div><div id="more"></div></main>
<script type="application/json" id="data">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = id => document.getElementById(id);
const CHUNK = 50;
let shown = [], drawn = 0;

function count(ops, kind) { let n = 0; for (const op of ops) if (op === kind) n++; return n; }
const rows = data.utterance_id.map((id, i) => {
  const ops = data.ops[i], s = count(ops, "S"), d = count(ops, "D"), ins = count(ops, "I"), length = ops.length - ins;
  return {i, id, s, d, ins, length, errors: s + d + ins, wer: length ? (s + d + ins) / length : (ins ? Infinity : 0),
          top: data.weights.length ? Math.max(...data.weights[i]) : 0,
          text: (id + " " + data.reference[i] + " " + data.hypothesis[i]).toLowerCase()};
});

function fill(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => { const o = document.createElement("option"); o.value = value;
    o.textContent = text; return o; }));
}
function fillValues() {
  const group = byId("group").value;
  const names = group ? data.categories[group] : [];
  fill(byId("value"), [["", "all"], ...names.map(name => [name, name])]);
  byId("value").disabled = !group;
}
function percent(errors, length) { return length ? (100 * errors / length).toFixed(1) + " %" : "–"; }

const ORDERS = {
  errors: (a, b) => b.errors - a.errors || b.wer - a.wer, wer: (a, b) => (b.wer === a.wer ? 0 : b.wer - a.wer),
  best: (a, b) => (a.wer === b.wer ? b.length - a.length : a.wer - b.wer), id: () => 0,
  long: (a, b) => data.duration_s[b.i] - data.duration_s[a.i], unsure: (a, b) => a.top - b.top,
};
function wanted(row) {
  const find = byId("find").value.trim().toLowerCase(), group = byId("group").value, value = byId("value").value;
  const error = byId("error").value, flag = byId("flag").value, expert = byId("expert").value;
  if (find && !row.text.includes(find)) return false;
  if (group && value && data.groups[group][row.i] !== value) return false;
  if (error === "some" && !row.errors || error === "none" && row.errors) return false;
  if (error === "S" && !row.s || error === "D" && !row.d || error === "I" && !row.ins) return false;
  if (flag && !data.flags[row.i].includes(flag)) return false;
  return expert === "" || String(data.expert[row.i]) === expert;
}
function update() {
  shown = rows.filter(wanted).sort((a, b) => ORDERS[byId("sort").value](a, b) || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0));
  const sum = key => shown.reduce((total, row) => total + row[key], 0);
  const s = sum("s"), d = sum("d"), ins = sum("ins"), length = sum("length");
  byId("summary").textContent = `${shown.length} of ${rows.length} utterances · WER ${percent(s + d + ins, length)} · ` +
    `${length} words, ${s} substituted, ${d} deleted, ${ins} inserted`;
  byId("list").replaceChildren(); drawn = 0; more(); remember();
}
function more() {
  const part = document.createDocumentFragment();
  for (const row of shown.slice(drawn, drawn + CHUNK)) part.append(card(row));
  drawn = Math.min(drawn + CHUNK, shown.length);
  byId("list").append(part);
  byId("more").textContent = drawn < shown.length ? `${shown.length - drawn} more below` : shown.length ? "" : "nothing matches";
}
function add(parent, tag, text, name) {
  const node = document.createElement(tag); if (text !== undefined) node.textContent = text; if (name) node.className = name;
  parent.append(node); return node;
}
function card(row) {
  const node = document.createElement("article"), head = add(node, "div", undefined, "head");
  node.dataset.id = row.id;
  add(head, "b", percent(row.errors, row.length)); add(head, "span", `${row.errors} of ${row.length} words`);
  add(head, "span", row.id);
  for (const line of data.captions[row.i]) add(head, "span", line);
  for (const flag of data.flags[row.i]) add(head, "span", flag, "flag");
  if (data.error[row.i]) add(head, "span", "failed: " + data.error[row.i], "flag");
  if (data.weights.length) bars(head, row);
  const clip = data.audio[row.i] || data.pictures[row.i] ? add(head, "span", undefined, "clip") : null;
  if (data.audio[row.i]) { const player = add(clip, "audio"); player.controls = true;
    player.preload = "none"; player.src = data.audio[row.i]; }
  if (data.pictures[row.i]) { const picture = add(clip, "img"); picture.src = data.pictures[row.i];
    picture.alt = picture.title = "waveform above spectrogram, 0 to 8 kHz"; }
  words(node, row);
  return node;
}
function bars(head, row) {
  const box = add(head, "span", undefined, "bars");
  data.weights[row.i].forEach((weight, expert) => {
    const bar = add(box, "span", undefined, expert === data.expert[row.i] ? "top" : "");
    bar.style.height = Math.round(100 * weight) + "%"; bar.title = `expert ${expert}: ${(100 * weight).toFixed(0)} %`;
  });
  add(head, "span", "expert " + data.expert[row.i]);
}
function words(node, row) {
  const box = add(node, "div", undefined, "words"), ref = data.reference[row.i].split(/\\s+/).filter(Boolean);
  const hyp = data.hypothesis[row.i].split(/\\s+/).filter(Boolean);
  let r = 0, h = 0;
  for (const op of data.ops[row.i]) {
    const pair = add(box, "span", undefined, "w " + (op === "=" ? "" : op));
    add(pair, "span", op === "I" ? "" : ref[r++]); add(pair, "span", op === "D" ? "" : hyp[h++]);
    if (op !== "=") add(pair, "i", op);
  }
}
const CONTROLS = ["find", "group", "value", "error", "flag", "expert", "sort"];
function remember() {
  const state = new URLSearchParams();
  for (const id of CONTROLS) if (byId(id).value && !(id === "sort" && byId(id).value === "errors")) state.set(id, byId(id).value);
  try { history.replaceState(null, "", "#" + state); } catch (error) { /* a sandboxed frame may not change its address */ }
}
function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of CONTROLS) { if (id === "value") fillValues(); if (state.has(id)) byId(id).value = state.get(id); }
  update();
}
const named = Object.keys(data.groups).map(name => [name, name.replaceAll("_", " ")]);
fill(byId("group"), [["", "–"], ...named]);
fill(byId("flag"), [["", "all"], ...[...new Set(data.flags.flat())].sort().map(flag => [flag, flag])]);
const n_experts = data.weights.length ? data.weights[0].length : 0;
fill(byId("expert"), [["", "all"], ...Array.from({length: n_experts}, (_, e) => [String(e), String(e)])]);
byId("expertlabel").hidden = !n_experts;
byId("group").addEventListener("change", fillValues);
byId("controls").addEventListener("input", update);
window.addEventListener("hashchange", recall);
recall();
new IntersectionObserver(seen => { if (seen[0].isIntersecting && drawn < shown.length) more(); }, {rootMargin: "800px"})
  .observe(byId("more"));
document.body.dataset.readyMs = Math.round(performance.now());
</script></body></html>
"""
