// The console: what is where, and who tells whom.

import * as asking from "./asking.js";
import * as bill from "./bill.js";
import * as door from "./door.js";
import { forecast } from "./forecast.js";
import { $, notify } from "./page.js";
import * as reader from "./reader.js";
import * as shelf from "./shelf.js";
import * as talks from "./talks.js";

let served = null;

reader.start();
shelf.start({ whenChosen: asking.tellChoices, open: (id) => reader.openText(id, shelf.view(id).name) });
asking.start({ documents: shelf.asked, documentOf: shelf.view, whenAnswered: bill.look });
talks.start();
bill.start({ busy: () => shelf.isBusy() || asking.isRunning(), indexed: shelf.numIndexed });
$("policy").addEventListener("change", () => served && forecast(served, asking.chosenPolicy()));

door.watch(async (model) => {
  served = model;
  $("model").textContent = `${model.id} · ${model.fano.dtype}`;
  asking.serve(model);
  const failed = (await Promise.allSettled([shelf.refresh(), talks.refresh(), bill.look()])).find((each) => each.reason);
  if (failed) notify("lists", `Not everything could be looked up: ${failed.reason.message}.`, { bad: true });
  await forecast(model, asking.chosenPolicy());
});
