// What Anthropic's own client for Node makes of an endpoint: node anthropic_client.mjs BASE_URL MODEL QUESTIONS.json
// The key comes from ANTHROPIC_API_KEY and is sent as x-api-key, the client's own way. Prints one JSON object.
import Anthropic from '@anthropic-ai/sdk';
import { readFileSync } from 'node:fs';

const [baseURL, model, file] = process.argv.slice(2);
const ask = JSON.parse(readFileSync(file, 'utf8'));
const client = new Anthropic({ baseURL, maxRetries: 0 });
const user = (content) => ({ role: 'user', content });
const text = (message) => message.content.filter((block) => block.type === 'text').map((block) => block.text).join('');
const options = { model, max_tokens: 256 };
const seen = {};

const first = await client.messages.create({ ...options, messages: [user(ask.greeting)] });
seen.greeting = text(first);
const second = await client.messages.create({
  ...options, messages: [user(ask.greeting), { role: 'assistant', content: first.content }, user(ask.count)],
});
seen.second = text(second);

const stream = client.messages.stream({ ...options, messages: [user(ask.count)] });
seen.streamed = await stream.finalText();

const tools = [ask.anthropic_tool];
const call = await client.messages.create({ ...options, messages: [user(ask.weather)], tools });
seen.stop_reason = call.stop_reason;
const use = call.content.find((block) => block.type === 'tool_use');
seen.given = use.input;
const result = { role: 'user', content: [{ type: 'tool_result', tool_use_id: use.id, content: ask.result }] };
seen.tool = text(await client.messages.create({
  ...options, messages: [user(ask.weather), { role: 'assistant', content: call.content }, result], tools,
}));

seen.wrong_key = await status(() => new Anthropic({ baseURL, apiKey: 'wrong', maxRetries: 0 }).messages.create({ ...options, messages: [user(ask.greeting)] }));
seen.wrong_model = await status(() => client.messages.create({ ...options, model: 'nobody/serves-this', messages: [user(ask.greeting)] }));
console.log(JSON.stringify(seen));

async function status(call) {
  try { await call(); return 200; } catch (error) { return error.status; }
}
