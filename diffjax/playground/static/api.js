// Requests to the server. Addresses are relative, so that they have the page's token.

async function answer(response) {
  const found = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  if (found.error) throw new Error(found.error);
  return found;
}

function posted(path, values, signal) {
  return fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(values),
    signal,
  });
}

export const get = async (path) => answer(await fetch(path));
export const post = async (path, values, signal) => answer(await posted(path, values, signal));

// A panel's work: onEvent is called with each event; aborting the signal ends the work.
export async function stream(panel, values, onEvent, signal) {
  const response = await posted(`api/${panel}`, values, signal);
  if (!response.ok || !response.headers.get("Content-Type").includes("ndjson")) {
    await answer(response);
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      onEvent(event);
    }
  }
}
