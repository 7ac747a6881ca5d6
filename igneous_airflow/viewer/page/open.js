// Asks for the state of a view, and sends the browser to Neuroglancer with it.
"use strict";

async function start() {
  const base = new URL("..", location.href).href.replace(/\/$/, "");
  const answer = await fetch(`${base}/state/${encodeURIComponent(document.body.dataset.view)}`, { credentials: "same-origin" });
  const text = await answer.text();
  if (!answer.ok) throw new Error(text);
  location.replace(`${base}/neuroglancer/v/1/#!${encodeURIComponent(text.replaceAll("{base}", base))}`);
}

start().catch((error) => { document.getElementById("message").textContent = error.message; });
