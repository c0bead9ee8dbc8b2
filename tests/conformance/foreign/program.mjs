// The main helpers of the official JavaScript client. Prints what each of them got as one JSON object.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.env.FANO_URL, apiKey: process.env.FANO_KEY, maxRetries: 0 });
const model = process.env.FANO_MODEL;
const embedder = process.env.FANO_EMBEDDER;
const text = "The vault opens at noon. Invoice QX-7741-B was paid by Margarethe Oldenkamp.";
const messages = [{ role: "user", content: "Hello" }];
const told = {};

told["models.list"] = [];
for await (const each of client.models.list()) told["models.list"].push(each.id);
const reply = await client.chat.completions.create({ model, messages });
told["chat.completions.create"] = reply.choices[0].message.content;
let streamed = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true }))
  streamed += chunk.choices[0]?.delta?.content ?? "";
told["chat.completions.create stream"] = streamed;
told["chat.completions.stream"] = await client.chat.completions.stream({ model, messages }).finalContent();
told["embeddings.create"] = (await client.embeddings.create({ model: embedder, input: "One" })).data[0].embedding.length;

const file = await client.files.create({ file: await toFile(Buffer.from(text), "ledger.txt"), purpose: "assistants" });
told["files.create"] = file.bytes;
told["files.content"] = await (await client.files.content(file.id)).text();
const store = await client.vectorStores.create({ name: "ledgers" });
const added = await client.vectorStores.files.createAndPoll(store.id, { file_id: file.id }, { pollIntervalMs: 20 });
told["vectorStores.files.createAndPoll"] = added.status;
const batch = await client.vectorStores.fileBatches.uploadAndPoll(
  store.id, { files: [await toFile(Buffer.from("Another. " + text), "other.txt")] }, { pollIntervalMs: 20 });
told["vectorStores.fileBatches.uploadAndPoll"] = batch.file_counts.completed;
told["vectorStores.search"] = [];
for await (const hit of client.vectorStores.search(store.id, { query: "Who paid invoice QX-7741-B?" }))
  told["vectorStores.search"].push(hit.filename);

const tools = [{ type: "file_search", vector_store_ids: [store.id] }];
const input = "Who paid invoice QX-7741-B?";
const response = await client.responses.create({ model, input, tools, include: ["file_search_call.results"] });
told["responses.create"] = response.output_text;
told["citation"] = response.output.at(-1).content[0].annotations[0].quote;
const stream = client.responses.stream({ model, input, tools });
const kinds = [];
for await (const event of stream) kinds.push(event.type);
told["responses.stream"] = [kinds[0], kinds.at(-1), (await stream.finalResponse()).output_text];
told["responses.retrieve"] = (await client.responses.retrieve(response.id)).id === response.id;
try {
  await client.models.retrieve("gpt-6");
} catch (error) {
  told["error"] = [error.constructor.name, error.status, error.code, error.param];
}
console.log(JSON.stringify(told));
