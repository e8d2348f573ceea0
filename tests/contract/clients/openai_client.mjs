// What OpenAI's own client for Node makes of an endpoint: node openai_client.mjs BASE_URL MODEL QUESTIONS.json
// The key comes from the environment's OPENAI_API_KEY. Prints one JSON object.
import OpenAI from 'openai';
import { readFileSync } from 'node:fs';

const [baseURL, model, file] = process.argv.slice(2);
const ask = JSON.parse(readFileSync(file, 'utf8'));
const client = new OpenAI({ baseURL: `${baseURL}/v1`, maxRetries: 0 });
const user = (content) => ({ role: 'user', content });
const options = { model, temperature: 0, max_tokens: 256 };
const seen = {};

seen.models = (await client.models.list()).data.map((entry) => entry.id);

const first = await client.chat.completions.create({ ...options, messages: [user(ask.greeting)] });
seen.greeting = first.choices[0].message.content;
const second = await client.chat.completions.create({
  ...options, messages: [user(ask.greeting), first.choices[0].message, user(ask.count)],
});
seen.second = second.choices[0].message.content;

let streamed = '';
const stream = await client.chat.completions.create({
  ...options, messages: [user(ask.count)], stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? '';
  if (chunk.usage) seen.usage = chunk.usage.completion_tokens;
}
seen.streamed = streamed;

// The client's own loop: it calls the function, sends the result back and returns the last answer.
const runner = client.chat.completions.runTools({
  ...options, messages: [user(ask.weather)],
  tools: [{ type: 'function', function: { ...ask.tool.function, parse: JSON.parse, function: (given) => { seen.given = given; return ask.result; } } }],
});
seen.tool = await runner.finalContent();

const shaped = await client.chat.completions.create({
  ...options, messages: [user(ask.city)],
  response_format: { type: 'json_schema', json_schema: { name: 'city', strict: true, schema: ask.schema } },
});
seen.shaped = JSON.parse(shaped.choices[0].message.content);

seen.wrong_key = await status(() => new OpenAI({ baseURL: `${baseURL}/v1`, apiKey: 'wrong', maxRetries: 0 }).models.list());
console.log(JSON.stringify(seen));

async function status(call) {
  try { await call(); return 200; } catch (error) { return error.status; }
}
