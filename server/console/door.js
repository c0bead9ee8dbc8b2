// Whether the server can be used at all: loading, ready, shutting down, gone, or in want of a key.

import { hasKey, news, readiness, request, useKey } from "./api.js";
import { $, dismiss, notify } from "./page.js";

const LOOK_MS = 1000;
const LATER_MS = 3000;
const WORDS = {
  connecting: "connecting",
  loading: "loading the model",
  ready: "ready",
  draining: "shutting down",
  failed: "failed",
  lost: "no connection",
  locked: "a key is needed",
};

let stage = "connecting";
let isLooking = false;
let opened = () => {};

/** Begin; `whenOpen(model)` is called whenever the server can be used: at first, after a restart, with another key. */
export function watch(whenOpen) {
  opened = whenOpen;
  news.addEventListener("key", (event) => lock(event.detail.message));
  news.addEventListener("lost", () => {
    if (stage === "ready") stage = "connecting"; // what comes back may be another process
    look();
  });
  news.addEventListener("unready", () => look());
  window.addEventListener("offline", () => look());
  $("door").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = $("key").value.trim();
    if (text === "") {
      $("key").setAttribute("aria-invalid", "true");
      $("door-why").textContent = "The field is empty. Type the key, or paste it.";
      $("key").focus();
      return;
    }
    useKey(text);
    stage = "connecting";
    await look();
  });
  look();
}

/** Ask the server until it is ready. */
async function look() {
  if (isLooking) return;
  isLooking = true;
  try {
    for (;;) {
      const { status, reason } = await readiness();
      if (status === "ready") break;
      show(status, reason);
      await new Promise((done) => setTimeout(done, status === "loading" ? LOOK_MS : LATER_MS));
    }
    if (stage !== "locked" && stage !== "ready") await enter();
  } finally {
    isLooking = false;
  }
}

async function enter() {
  try {
    const models = await request("GET", "/v1/models");
    $("door").hidden = true;
    $("main").hidden = false;
    show("ready", null);
    opened(models.data[0]);
  } catch (error) {
    // Why it is locked was told; anything else passes, or the next look says what it is.
    if (stage !== "locked") setTimeout(look, LATER_MS);
  }
}

function lock(why) {
  if (stage === "locked" && !hasKey()) return; // several requests were under way; the first has said it
  const wasTried = hasKey();
  useKey("");
  stage = "locked";
  say("locked");
  dismiss("server");
  $("door-why").textContent = wasTried
    ? `The key was not taken: ${why}`
    : "This server answers those who bring a key. Whoever runs it makes one with `fano keys add`.";
  $("key").value = "";
  $("key").toggleAttribute("aria-invalid", wasTried);
  if ($("door").hidden) {
    $("door").hidden = false;
    $("main").hidden = true;
  }
  $("key").focus();
}

function show(status, reason) {
  if (stage === "locked" && status === "ready") return;
  if (status === "ready") dismiss("server");
  else if (status !== stage && status !== "loading") {
    const words = {
      draining: "The server is shutting down and takes nothing new. This page goes on when it is back.",
      failed: `The server cannot serve: ${reason}`,
      lost: "There is no connection to the server. What you see is how it was; this page goes on when it is back.",
    };
    notify("server", words[status] ?? String(reason), { bad: true });
  }
  stage = status;
  say(status);
}

function say(status) {
  if ($("state").dataset.stage === status) return;
  $("state").dataset.stage = status;
  $("state").textContent = WORDS[status] ?? status;
}
