"""Define the CSS style sheet of the reports (one column, light and dark mode, print) and the shared page colors.

The series colors are from the Okabe–Ito palette.
"""

THEME = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1b1c1e; --soft: #5c6066; --rule: #dcdcd6; 
  --good: #0072b2; --middle: #b9b9b1; --bad: #d55e00;
  --series-prm: #0072b2; --series-weighted: #007a5a; --series-majority: #c04f00; --series-oracle: #6a6d73;
  --series-random: #a3548a; --series-first: #8a6d00;
}
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #16181b; --ink: #e9e8e4; --soft: #a5a8ad; --rule: #363a40; 
  --good: #56b4e9; --middle: #6b6f75; --bad: #f08a3c;
  --series-prm: #56b4e9; --series-weighted: #2fc79a; --series-majority: #f08a3c; --series-oracle: #a5a8ad;
  --series-random: #d993bf; --series-first: #d9c04a;
} }
"""

CSS = (
    THEME
    + """
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 3.5rem 1.5rem 5rem; max-width: 50rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Source Sans 3", "Segoe UI", system-ui, "Noto Sans", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums lining-nums;
}
h1 { font-size: 1.9rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; margin: 0; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3.2rem 0 0.4rem; }
h3 { font-size: 1rem; font-weight: 650; margin: 2rem 0 0.6rem; }
p { margin: 0.5rem 0 1rem; max-width: 42rem; }
a { color: var(--good); }
.subtitle, .note, figcaption { color: var(--soft); }
.note, figcaption { font-size: 0.875rem; }
.lead { font-size: 1.15rem; margin-top: 1.4rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9375rem; margin: 0.8rem 0 1.2rem; }
.wide { overflow-x: auto; }
th, td {
  text-align: right; vertical-align: baseline;
  padding: 0.36rem 0 0.36rem 1.1rem; border-bottom: 1px solid var(--rule);
}
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--soft); font-weight: 400; }
tbody th { color: inherit; }
td small { color: var(--soft); font-size: 0.8rem; white-space: nowrap; }
td .note { display: block; }
code { font: 0.9em/1.4 ui-monospace, "SF Mono", Menlo, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.met { color: var(--good); } .missed { color: var(--bad); font-weight: 650; }
figure { margin: 1rem 0 1.6rem; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure svg text { font-family: inherit !important; }
.curves { display: grid; grid-template-columns: 1fr 1fr; gap: 0.6rem 2rem; }
.curves figure { margin: 0.6rem 0; } .curves h3 { margin: 0.8rem 0 0.2rem; }
.curves .note { margin: 0; }
.solution {
  display: grid; grid-template-columns: 9rem 1fr; gap: 0.4rem 1.6rem;
  padding: 1.3rem 0; border-top: 1px solid var(--rule);
}
.solution.plain { grid-template-columns: 1fr; }
.images img { display: block; width: 100%; margin-bottom: 0.5rem; border: 1px solid var(--rule); background: #fff; }
.images img.small { image-rendering: pixelated; }
.question { margin: 0 0 0.2rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.steps { list-style: none; margin: 0.7rem 0 0; padding: 0; }
.steps li {
  --score: color-mix(in oklab, var(--end) var(--share), var(--middle));
  display: grid; grid-template-columns: 1fr 5rem 2.6rem 1.4rem; gap: 0.8rem; align-items: center;
  padding: 0.28rem 0.7rem; margin-bottom: 2px;
  border-left: 4px solid var(--score);
  background: color-mix(in oklab, var(--score) 13%, transparent);
}
.steps .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.steps .bar { height: 6px; background: color-mix(in oklab, var(--score) 25%, transparent); }
.steps .bar i { display: block; height: 100%; background: var(--score); }
.steps .score { text-align: right; font-size: 0.9rem; }
.steps .correct { color: var(--good); text-align: center; }
.steps .incorrect { color: var(--bad); text-align: center; font-weight: 700; }
.facts td { text-align: left; }
@media (max-width: 38rem) {
  body { padding: 2rem 1rem 3rem; }
  .solution, .curves { grid-template-columns: 1fr; } .images { max-width: 9rem; }
  .steps li { grid-template-columns: 1fr 2.6rem 1.4rem; } .steps .bar { display: none; }
}
@media print {
  :root { color-scheme: light; --paper: #fff; }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } figure, .solution, tr { break-inside: avoid; }
}
"""
)
