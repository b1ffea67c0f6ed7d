// Opens the playground in a DOM without a browser: `node playground.mjs URL [API_KEY]` prints what
// it shows, first without the key, then with it.

import { JSDOM, VirtualConsole } from "jsdom";

const PATIENCE_MILLISECONDS = 60_000;
const [url, key] = process.argv.slice(2);

const virtualConsole = new VirtualConsole();
virtualConsole.on("jsdomError", (error) => {
  // Its parser does not know every style.
  if (error.type !== "css-parsing") throw error;
});
const { window } = await JSDOM.fromURL(url, {
  virtualConsole,
  runScripts: "dangerously",
  beforeParse(page) {
    page.fetch = (path, options) => fetch(new URL(path, page.location), options);
  },
});
const byId = (id) => window.document.getElementById(id);
const lines = (id) => [...byId(id).querySelectorAll("li")].map((item) =>
  [...item.children].map((child) => child.textContent));

function shown() {
  return {
    health: byId("health").textContent,
    error: byId("error").textContent,
    options: window.document.querySelector("details").open,
    summary: byId("summary").textContent,
    before: lines("ranking"),
    after: byId("after").hidden ? null : lines("reranked"),
    clients: [...byId("kind").options].map((option) => option.text),
    snippet: byId("snippet").textContent,
  };
}

async function settled() {
  const end = Date.now() + PATIENCE_MILLISECONDS;
  const isBusy = () => byId("rank").disabled || byId("health").textContent.startsWith("connecting");
  do await new Promise((resolve) => setTimeout(resolve, 50));
  while (isBusy() && Date.now() < end);
}

await settled();
byId("rank").click();
await settled();
const states = [shown()];
if (key) {
  byId("key").value = key;
  byId("key").dispatchEvent(new window.Event("change"));
  byId("rank").click();
  await settled();
  states.push(shown());
}
console.log(JSON.stringify(states));
window.close();
