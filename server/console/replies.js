// A question to the server and its answer as it comes, whichever route it takes. Yields
// {text}, {sources}, {citation}, {reading} (a long prompt being read) and at last {done: {text, found, finish, usage}},
// whose text is the whole answer where it was told again.

import { events, Lost, Refused } from "./api.js";
import { length } from "./words.js";

// A question that is longer brings a text along, which is searched beside the documents: that is for chats.
const MOST_ASKED = 4000;

/**
 * What is asked of documents alone goes to /v1/ask, which also shows what was found; a conversation, another attention
 * policy and plain chat are for /v1/chat/completions.
 */
export function ask({ model, question, documents, recall, policy, session, turns }, signal) {
  if (documents.length && session === "" && policy === "" && question.length <= MOST_ASKED) {
    return asked({ documents, question, recall, stream: true }, signal);
  }
  const fano = {};
  if (documents.length) Object.assign(fano, { documents, recall });
  if (policy !== "") fano.policy = { name: policy };
  if (session !== "") fano.session = session;
  const messages = [...turns, { role: "user", content: question }];
  return chatted({ model, messages, stream: true, stream_options: { include_usage: true }, fano }, signal);
}

async function* asked(body, signal) {
  let isDone = false;
  for await (const { name, data } of events("POST", "/v1/ask", body, signal)) {
    if (name === "sources") yield { sources: data };
    else if (name === "token") yield { text: data.text };
    else if (name === "citation") yield { citation: data };
    else if (name === "error") throw new Refused(200, data.error, null);
    else if (name === "done") {
      isDone = true;
      yield { done: { text: data.answer, found: data.found, finish: data.finish_reason, usage: data.usage } };
    }
  }
  if (!isDone) throw new Lost("the answer broke off");
}

async function* chatted(body, signal) {
  let finish = null, usage = null, isDone = false;
  for await (const { name, data } of events("POST", "/v1/chat/completions", body, signal)) {
    if (name === "end") { isDone = true; continue; }
    if (data.error) throw new Refused(200, data.error, null);
    if (data.prompt_progress) yield { reading: data.prompt_progress };
    if (data.usage) usage = data.usage;
    for (const { delta, finish_reason } of data.choices) {
      if (delta.content) yield { text: delta.content };
      for (const each of delta.annotations ?? []) yield { citation: cited(each) };
      finish = finish_reason ?? finish;
    }
  }
  if (!isDone) throw new Lost("the answer broke off");
  yield { done: { text: null, found: null, finish, usage } };
}

/** An annotation in the shape of a citation: its index is where the quotation ends in the answer. */
function cited(annotation) {
  return {
    source: null,
    document: annotation.file_id,
    name: annotation.filename,
    start: annotation.start_char,
    end: annotation.end_char,
    quote: annotation.quote,
    page: annotation.page,
    answer_start: annotation.index - length(annotation.quote),
    answer_end: annotation.index,
  };
}
