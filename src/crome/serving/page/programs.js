// A question as a program that asks it again. Pictures and recordings are named, not contained:
// picture-1.png, recording-1.wav, …

const PICTURE = /"(picture-\d+\.png)"/g;
const RECORDING = /"(recording-\d+\.wav)"/g;

/** A request in Python. */
export function python(answer, settings) {
  const { messages, count } = named(answer.messages());
  const text = JSON.stringify(messages)
    .replaceAll(PICTURE, '"data:image/png;base64," + data("$1")')
    .replaceAll(RECORDING, 'data("$1")');
  const opening = [
    "import base64",
    "",
    "def data(file):",
    '    return base64.b64encode(open(file, "rb").read()).decode()',
    "",
  ];
  const lines = [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(new URL("v1", location.href).href)}, api_key="none")`,
    "answer = client.chat.completions.create(",
    `    model=${JSON.stringify(answer.model)},`,
    `    messages=${text},`,
    `    max_tokens=${settings.max_tokens}, temperature=${settings.temperature},`,
    ")",
    "print(answer.choices[0].message.content)",
  ];
  return [...(count ? opening : []), ...lines].join("\n") + "\n";
}

/** A request for the shell, which puts the files in where they are named. */
export function curl(answer, settings) {
  const { messages } = named(answer.messages());
  const body = JSON.stringify({ model: answer.model, messages, ...settings })
    .replaceAll(/[\\$`]/g, "\\$&") // they mean something to the shell
    .replaceAll(PICTURE, '"data:image/png;base64,$(base64 < $1 | tr -d "\\n")"')
    .replaceAll(RECORDING, '"$(base64 < $1 | tr -d "\\n")"');
  const url = new URL("v1/chat/completions", location.href).href;
  return `curl '${url}' -H 'Content-Type: application/json' -d @- <<END\n${body}\nEND\n`;
}

/** Messages with names of files in place of pictures and recordings, and how many there are. */
function named(messages) {
  let [seen, heard] = [0, 0];
  const name = (part) => {
    if (part.type === "image_url") return { ...part, image_url: { url: `picture-${++seen}.png` } };
    if (part.type === "input_audio") return { ...part, input_audio: { data: `recording-${++heard}.wav`, format: "wav" } };
    return part;
  };
  messages = messages.map(({ role, content }) => ({
    role,
    content: typeof content === "string" ? content : content.map(name),
  }));
  return { messages, count: seen + heard };
}
