// What things are called, and what their colours are; the same everywhere on the page.

export const PHASES = [
  { key: "queue", name: "Queue", tone: "queue", means: "waited until its prompt's first step" },
  { key: "prefill", name: "Prefill", tone: "prefill", means: "its prompt was computed, until token 1 left" },
  { key: "transfer", name: "KV transfer", tone: "transfer", means: "its KV moved, beyond what hid behind the prefill" },
  { key: "decode_wait", name: "Decode wait", tone: "wait", means: "waited for room or a first step on the decode worker" },
  { key: "decode", name: "Decode", tone: "decode", means: "tokens 2 to the last were computed" },
];

export const BLAMES = [
  ...PHASES,
  { key: "worker_loss", name: "Worker loss", tone: "loss", means: "a worker that it needed was lost" },
  { key: "none", name: "Other", tone: "other", means: "no phase was to blame: our own fault, or the router stopped" },
];

export const OUTCOMES = [
  { key: "finished", name: "Finished", tone: "good" },
  { key: "cancelled", name: "Cancelled by the client", tone: "other" },
  { key: "rejected", name: "Rejected", tone: "queue" },
  { key: "deadline", name: "Past its deadline", tone: "transfer" },
  { key: "failed", name: "Failed", tone: "loss" },
];

export const BLOCK_STATES = [
  { name: "used", tone: "used" },
  { name: "cached", tone: "cached" },
  { name: "leased", tone: "transfer" },
  { name: "quarantined", tone: "queue" },
  { name: "free", tone: "free" },
];

export function blameName(key) {
  return (BLAMES.find((one) => one.key === key) || BLAMES[BLAMES.length - 1]).name;
}

export function blameTone(key) {
  return (BLAMES.find((one) => one.key === key) || BLAMES[BLAMES.length - 1]).tone;
}
