"""The page of `jaxalign chat --web`: one HTML file of itself. Text is set as text, never as HTML."""

import html
import json
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --own: #0072b222 }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; height: 100dvh; display: flex; flex-direction: column }
header, form, details { padding: .5rem .8rem }
header { border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .4rem .8rem; align-items: center }
h1 { font-size: 1rem; margin: 0; flex: 1 1 auto }
main { flex: 1; display: flex; flex-wrap: wrap; overflow: auto }
section { flex: 1 1 20rem; min-width: 0; padding: 0 .8rem; border-right: 1px solid var(--line) }
h2 { font-size: .85rem; font-weight: 600; overflow-wrap: anywhere; opacity: .75 }
.message { white-space: pre-wrap; overflow-wrap: anywhere; padding: .4rem .6rem; margin: .4rem 0; border-radius: .5rem }
.user { background: var(--own) }
.error { border: 1px solid #d55e00 }
form { border-top: 1px solid var(--line); display: flex; gap: .5rem; align-items: end }
textarea, input, button { font: inherit }
textarea { flex: 1; min-width: 0; resize: vertical }
label { display: block; margin: .3rem 0 }
details textarea { width: 100% }
input { width: 6rem }
"""

_SCRIPT = """
'use strict';
const settings = JSON.parse(document.getElementById('settings').textContent);
const find = id => document.getElementById(id);
const columns = [...document.querySelectorAll('section')];
const histories = columns.map(() => []);
let running = null;
let sent = 0;

function add(column, role, text) {
  const box = document.createElement('div');
  box.className = 'message ' + role;
  box.textContent = text;
  columns[column].append(box);
  box.scrollIntoView({block: 'end'});
  return box;
}

function forget(count) {
  histories.forEach((history, column) => {
    history.splice(Math.max(0, history.length - count));
    columns[column].querySelectorAll('.message').forEach(box => box.remove());
    history.forEach(message => add(column, message.role, message.content));
  });
}

async function ask(column, seed, signal) {
  const system = find('system').value;
  // A message without a reply is not told again.
  const history = histories[column];
  const kept = history.filter((message, i) => message.content && history[i + 1]?.content !== '');
  const messages = (system ? [{role: 'system', content: system}] : []).concat(kept);
  const box = add(column, 'assistant', '');
  let reply = '';
  try {
    const response = await fetch('reply', {
      method: 'POST', signal, headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({model: column, messages, seed, temperature: Number(find('temperature').value)})});
    if (!response.ok) throw new Error(await response.text());
    const reader = response.body.getReader(), decoder = new TextDecoder();
    let rest = '';
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      rest += decoder.decode(value, {stream: true});
      const lines = rest.split('\\n');
      rest = lines.pop();
      for (const line of lines) {
        const part = JSON.parse(line);
        if (part.error) throw new Error(part.error);
        // Of a stop string, a part may have been shown before it was whole.
        if (part.done) { reply = part.reply; box.textContent = reply; }
        if (part.text) { reply += part.text; box.textContent = reply; box.scrollIntoView({block: 'end'}); }
      }
    }
  } catch (error) {
    if (error.name !== 'AbortError') { box.className = 'message error'; box.textContent = error.message; }
  }
  histories[column].push({role: 'assistant', content: reply});
}

async function say(text) {
  histories.forEach((history, column) => {
    history.push({role: 'user', content: text});
    add(column, 'user', text);
  });
  running = new AbortController();
  find('send').textContent = 'Stop';
  const seed = (settings.seed + sent++) % 2147483648;
  await Promise.all(columns.map((_, column) => ask(column, seed, running.signal)));
  running = null;
  find('send').textContent = 'Send';
}

find('form').addEventListener('submit', event => {
  event.preventDefault();
  if (running) { running.abort(); return; }
  const text = find('text').value.trim();
  if (text) { find('text').value = ''; say(text); }
});
find('text').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find('form').requestSubmit();
  }
});
find('reset').addEventListener('click', () => { if (!running) forget(Infinity); });
find('undo').addEventListener('click', () => { if (!running) forget(2); });
find('retry').addEventListener('click', () => {
  const asked = histories[0].at(-2);
  if (running || !asked) return;
  forget(2);
  say(asked.content);
});
find('save').addEventListener('click', () => {
  const rows = histories.map((history, column) => JSON.stringify({model: settings.names[column], messages: history}));
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([rows.join('\\n') + '\\n'], {type: 'application/jsonl'}));
  link.download = 'chat.jsonl';
  link.click();
  URL.revokeObjectURL(link.href);
});
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>jaxalign chat</title>
<style nonce="{nonce}">{style}</style>
</head>
<body>
<header>
<h1>jaxalign chat</h1>
<button id="retry" type="button">Retry</button>
<button id="undo" type="button">Undo</button>
<button id="reset" type="button">Reset</button>
<button id="save" type="button">Save</button>
</header>
<details{opened}>
<summary>Settings</summary>
<label>System message <textarea id="system" rows="2">{system}</textarea></label>
<label>Temperature <input id="temperature" type="number" min="0" step="0.1" value="{temperature}"></label>
</details>
<main>{columns}</main>
<form id="form">
<textarea id="text" rows="2" aria-label="{label}" placeholder="{label}" autofocus></textarea>
<button id="send">Send</button>
</form>
<script nonce="{nonce}" id="settings" type="application/json">{settings}</script>
<script nonce="{nonce}">{script}</script>
</body>
</html>
"""


def page(
    names: Sequence[str], nonce: str, *, system: str, temperature: float, plain: bool, seed: int = 0
) -> str:
    """The page, for models of these names.

    Args:
      nonce: what its own style and scripts are marked with; all others are forbidden.
      plain: texts are continued, in place of messages answered.
    """
    columns = "".join(f"<section><h2>{html.escape(name)}</h2></section>" for name in names)
    # Nothing in a script ends it.
    settings = json.dumps({"names": list(names), "seed": seed}).replace("<", "\\u003c")
    return _PAGE.format(
        nonce=nonce,
        style=_STYLE,
        script=_SCRIPT,
        columns=columns,
        settings=settings,
        # A line break that begins a textarea is not of its text.
        system=f"\n{html.escape(system)}",
        temperature=f"{temperature:g}",
        opened=" open" if system else "",
        label="A text to continue" if plain else "Message",
    )
