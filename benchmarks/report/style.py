"""Style and script of the report page: light and dark, narrow and wide screens, nothing from outside."""

STYLE = """
:root { color-scheme: light dark;
  --paper: #fdfdfc; --panel: #f4f4f1; --ink: #1b1d20; --ink-soft: #63676e; --rule: #dcdcd6;
  --good: #23704a; --bad: #b3261e;
  --series-1: #2461a6; --series-2: #c2661f; --series-3: #2f7d5b; --series-4: #7d5aa6;
  --series-quiet: #8b8f96; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #141619; --panel: #1d2024; --ink: #e6e7e9; --ink-soft: #9a9fa8; --rule: #32363c;
  --good: #7cc8a0; --bad: #ff8a80;
  --series-1: #7fb0e6; --series-2: #e9a066; --series-3: #7cc4a2; --series-4: #bda2e0;
  --series-quiet: #7d838c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 1152px; padding: 40px 32px 64px; background: var(--paper);
  color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Liberation Sans", Arial, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 28px; line-height: 1.2; font-weight: 650; letter-spacing: -.012em; margin: 0 0 6px; }
h2 { font-size: 19px; font-weight: 650; letter-spacing: -.006em; margin: 0 0 16px; }
h3 { font-size: 13px; font-weight: 600; margin: 22px 0 10px; color: var(--ink-soft); }
section { border-top: 1px solid var(--rule); margin-top: 40px; padding-top: 22px; }
p { margin: 0 0 12px; }
small { font-size: 12px; color: var(--ink-soft); }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
.meta { color: var(--ink-soft); font-size: 13px; margin-bottom: 18px; }
.summary { font-size: 17px; line-height: 1.55; max-width: 74ch; text-wrap: pretty; }
.note { color: var(--ink-soft); font-size: 13px; max-width: 90ch; margin: 10px 0; }
.absent { border-left: 2px solid var(--rule); padding-left: 10px; }
.problem { border-left: 2px solid var(--bad); padding-left: 10px; }
.command { margin: 10px 0 0; font-size: 12.5px; color: var(--ink-soft); overflow-wrap: anywhere; }
.finding { margin: 12px 0 0; max-width: 80ch; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 24px; font-size: 13.5px; }
nav a { color: var(--ink-soft); text-decoration: none; border-bottom: 1px solid var(--rule);
  padding: 2px 0; }
nav a:hover, nav a:focus-visible { color: var(--ink); border-color: var(--ink); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 1px;
  margin-top: 26px;
  background: var(--rule); border: 1px solid var(--rule); }
.tiles > div { background: var(--paper); padding: 14px 16px; display: flex; flex-direction: column; }
.tiles b { font-size: 25px; line-height: 1.2; font-weight: 600; letter-spacing: -.015em;
  font-variant-numeric: tabular-nums; }
.tiles span { font-size: 13px; line-height: 1.35; margin: 4px 0 6px; }
.tiles small { margin-top: auto; font-variant-numeric: tabular-nums; }
figure { margin: 0; min-width: 0; }
.chart { display: block; width: 100%; max-width: 460px; height: auto; overflow: visible; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr));
  gap: 26px 32px; margin: 4px 0 18px; }
.charts.two { grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
table.dense { font-size: 13px; } .dense th, .dense td { padding-right: 10px; } .dense th {
  min-width: 48px; }
table.narrow { max-width: 720px; }
.pair.wide { grid-template-columns: minmax(0, 1.9fr) minmax(0, 1fr); gap: 24px 28px; }
.pair { display: grid; grid-template-columns: minmax(0, 1.55fr) minmax(0, 1fr); gap: 24px 36px;
  align-items: start; }
.scroll { overflow-x: auto; max-width: 100%; scrollbar-width: thin; }
.scroll:focus-visible { outline: 2px solid var(--series-1); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: nowrap; }
th { font-weight: 500; font-size: 12px; line-height: 1.3; color: var(--ink-soft); vertical-align: bottom;
  white-space: normal; min-width: 62px; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; }
td small { margin-left: 4px; }
tr.strong td { font-weight: 600; }
.stacked td small { display: block; margin-left: 0; }
.words td:last-child { white-space: normal; min-width: 190px; text-align: left; }
.words th:last-child { text-align: left; }
.published { margin-top: 28px; padding: 14px 16px; background: var(--panel); }
.caption { font-size: 13.5px; font-weight: 600; margin: 0 0 8px; text-wrap: pretty; }
.published td small { display: block; margin: 0; }
.published td:nth-last-child(-n+2), .published th:nth-last-child(-n+2) { text-align: left;
  padding-left: 12px; }
.chain { display: flex; align-items: center; }
.branches { flex: 4; min-width: 0; display: grid; gap: 14px; }
.lane { list-style: none; margin: 0; padding: 0; display: flex; flex: 4; min-width: 0; }
.lane li { position: relative; flex: 0 1 25%; min-width: 0; margin-right: 22px; padding: 8px 10px;
  background: var(--panel);
  border-top: 2px solid var(--ink-soft); line-height: 1.3; }
.lane.seeing li { border-color: var(--series-3); } .lane.acting li { border-color: var(--series-1); }
.lane b { display: block; font-size: 13.5px; font-weight: 600; } .lane small { font-size: 11.5px;
  display: block; }
.lane li::after { content: "\\2192"; position: absolute; right: -18px; top: calc(50% - 10px);
  color: var(--ink-soft); }
.branches .lane li:last-child::after { content: none; } .branches .lane li:last-child { margin-right: 0; }
.bar { margin-bottom: 14px; }
button { font: inherit; font-size: 13px; color: var(--ink); background: var(--panel);
  border: 1px solid var(--rule);
  border-radius: 3px; padding: 5px 12px; cursor: pointer; }
button:hover { border-color: var(--ink-soft); }
.episodes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr));
  gap: 26px 32px; }
.episode figcaption { margin-bottom: 8px; line-height: 1.35; } .episode b { font-weight: 600; }
.episode figcaption small { display: block; }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 6px; }
.trio video, .hole { display: block; width: 100%; aspect-ratio: 1; object-fit: contain;
  background: var(--panel); image-rendering: pixelated; }
.hole { display: grid; place-content: center; text-align: center; padding: 8px; font-size: 11.5px;
  color: var(--ink-soft); overflow: hidden; }
.trio span { display: block; font-size: 12px; color: var(--ink-soft); margin-top: 4px; line-height: 1.3; }
.lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr));
  gap: 0 40px; }
dl { display: grid; grid-template-columns: auto 1fr; gap: 3px 16px; margin: 0; font-size: 13.5px; }
dt { color: var(--ink-soft); } dd { margin: 0; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.commands { list-style: none; margin: 0; padding: 0; }
.commands li { display: grid; grid-template-columns: 150px minmax(0, 1fr); gap: 2px 16px; padding: 5px 0;
  border-bottom: 1px solid var(--rule); font-size: 13.5px; }
.commands code { overflow-wrap: anywhere; }
footer { margin-top: 40px; border-top: 1px solid var(--rule); padding-top: 14px; color: var(--ink-soft);
  font-size: 12.5px; }
@media (max-width: 900px) {
  .pair, .pair.wide { grid-template-columns: minmax(0, 1fr); } .pair > figure { order: -1; }
  .chain { display: block; } .lane { margin-bottom: 16px; }
  .lane { flex-direction: column; gap: 16px; } .branches { gap: 0; }
  .lane li { flex: none; margin-right: 0; padding: 5px 10px; border-top: 0;
  border-left: 2px solid var(--ink-soft);
    display: flex; justify-content: space-between; align-items: baseline; gap: 12px; }
  .trunk li:last-child::after { content: none; }
  .lane li::after { content: "\\2193"; right: auto; left: 12px; top: calc(100% - 3px); font-size: 13px; }
  .lane.seeing::before, .lane.acting::before { content: "and sees"; font-size: 12px;
  color: var(--ink-soft); margin: 2px 0 -10px; }
  .lane.acting::before { content: "and acts"; } }
@media (max-width: 600px) {
  body { padding: 24px 16px 40px; } h1 { font-size: 23px; } .summary { font-size: 15.5px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } .tiles > div { padding: 11px 12px; }
  .tiles b { font-size: 21px; }
  .published { margin-left: -16px; margin-right: -16px; }
  .commands li { grid-template-columns: minmax(0, 1fr); } .episodes { gap: 22px; } }
@media print { nav, .bar { display: none; } section { break-inside: avoid; } }
"""

SCRIPT = """
const button = document.getElementById("play");
if (button) {
  const videos = [...document.querySelectorAll("video")];
  const set = (playing) => {
    videos.forEach((video) => playing ? video.play().catch(() => {}) : video.pause());
    button.textContent = playing ? "Pause all videos" : "Play all videos";
    button.setAttribute("aria-pressed", String(playing));
  };
  button.addEventListener("click", () => set(button.getAttribute("aria-pressed") !== "true"));
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) set(false);
}
"""
