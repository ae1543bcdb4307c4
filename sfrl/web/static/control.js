// Stop and checkpoint-now, for a run that is live.

const LOOK_MS = 1200; // after which the trainer, which looks once a second, has seen a request

// el makes an element; lookAgain has the page read the run anew.
// Gives the node, and functions that take each answer about the run, and that there is none.
export function controls(el, path, lookAgain) {
  let checkpointAskedMs = null; // when, while none has come since
  let hasAskedToStop = false;
  let wasLive = false;
  const said = el("output");
  const save = el("button", { type: "button", id: "save", onclick: () => askFor("checkpoint") },
    "Checkpoint now");
  const stop = el("button", { type: "button", id: "stop", onclick: () => sure.showModal() },
    "Stop ...");
  const sure = el("dialog", { "aria-labelledby": "sure" },
    el("p", { id: "sure" },
      "Stop this run? It writes a last checkpoint; train.py --resume goes on from there."),
    el("div", { className: "tools" },
      el("button", { type: "button", autofocus: true, onclick: () => sure.close() }, "Go on"),
      el("button", {
        type: "button", id: "surely",
        onclick: () => {
          sure.close();
          askFor("stop");
        },
      }, "Stop it")));
  const node = el("div", { className: "tools", hidden: true }, save, stop, said, sure);

  async function askFor(what) {
    const query = new URLSearchParams({ run: path, what });
    const answer = await fetch(`api/ask?${query}`, { method: "POST" }).catch(() => null);
    if (!answer?.ok) {
      const isJson = answer?.headers.get("content-type")?.includes("json");
      said.textContent = isJson ? (await answer.json()).error : "It could not be asked.";
      return;
    }
    if (what === "stop") {
      hasAskedToStop = save.disabled = stop.disabled = true;
      said.textContent = "Asked to stop. It writes a last checkpoint, and ends.";
    } else {
      checkpointAskedMs = Date.now();
      said.textContent = "Asked for a checkpoint.";
    }
    setTimeout(lookAgain, LOOK_MS);
  }

  function tell(run) {
    const isLive = run.state === "live";
    const ageMs = 1000 * (run.checkpoint_age_s ?? Infinity);
    const saved = () => {
      const time = new Date(Date.now() - ageMs).toTimeString().slice(0, 8);
      return `${run.checkpoint.split("/").at(-1)} at ${time}`;
    };
    if (isLive !== wasLive) {
      const last = Number.isFinite(ageMs) ? saved() : "none";
      said.textContent = hasAskedToStop ? `It has stopped. Last checkpoint: ${last}.` : "";
      hasAskedToStop = save.disabled = stop.disabled = false;
      checkpointAskedMs = null;
      sure.close();
    } else if (checkpointAskedMs !== null && ageMs < Date.now() - checkpointAskedMs) {
      said.textContent = `Saved ${saved()}.`;
      checkpointAskedMs = null;
    }
    wasLive = isLive;
    node.hidden = !isLive && !said.textContent;
    save.hidden = stop.hidden = !isLive;
  }

  // The server has gone: that of --web ends with its run.
  function lose() {
    if (hasAskedToStop) said.textContent = "It was asked to stop, and answers no more.";
    save.hidden = stop.hidden = true;
    wasLive = false;
    sure.close();
  }

  return { node, tell, lose };
}
