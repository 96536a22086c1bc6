// Starts what a page needs. Without scripts every page still shows what it shows; only the log is a download then.

import { startCopying } from "./copying.js";
import { startLive } from "./live.js";
import { startLog } from "./log.js";
import { startMetrics } from "./metrics.js";
import { startTimes } from "./times.js";

startTimes();
startLive();
startCopying();
for (const section of document.querySelectorAll("[data-log]")) startLog(section);
for (const section of document.querySelectorAll("[data-metrics]")) startMetrics(section);

document.addEventListener("submit", (submitted) => {
  const question = submitted.target.dataset.confirm;
  if (question && !window.confirm(question)) submitted.preventDefault();
});
