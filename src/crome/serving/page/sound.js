// Files of recordings → WAV that the server takes, and the list that plays them.

import { dataUri, h } from "./dom.js";

const RATE = 24000; // samples a second: the most that a model hears
const LONGEST = 420; // seconds of one recording: 20 MB of WAV, and the server takes no more
const MOST = 8;

/** Opens a file of any kind that the browser plays. Gives {name, url, sound}; the url is a data URI
 *  of WAV in mono. */
export async function openSound(file) {
  let heard;
  try {
    heard = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not a recording that this browser can open.`);
  }
  if (heard.duration > LONGEST) throw new Error(`${file.name} lasts more than seven minutes.`);
  return { name: file.name, url: await dataUri(wav(mono(heard))), sound: true };
}

/** The mean of all channels. */
function mono(heard) {
  const samples = new Float32Array(heard.length);
  for (let channel = 0; channel < heard.numberOfChannels; channel++) {
    heard.getChannelData(channel).forEach((value, i) => (samples[i] += value / heard.numberOfChannels));
  }
  return samples;
}

/** Samples as a WAV of 16 bits. */
function wav(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, letters) => [...letters].forEach((c, i) => bytes.setUint8(place + i, c.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true); // bytes of the form that follows
  bytes.setUint16(20, 1, true); // whole numbers
  bytes.setUint16(22, 1, true); // channels
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, 2 * RATE, true);
  bytes.setUint16(32, 2, true); // bytes of a sample
  bytes.setUint16(34, 16, true); // bits of it
  text(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => bytes.setInt16(44 + 2 * i, 32767 * Math.max(-1, Math.min(1, value)), true));
  return new Blob([bytes], { type: "audio/wav" });
}

/** Something that plays a recording. */
export function player({ name, url }) {
  return h("audio", { src: url, controls: true, title: name, ariaLabel: `The recording: ${name}` });
}

/** The recordings of the next question. */
export class Sounds {
  constructor(element, onerror) {
    Object.assign(this, { element, onerror, all: [] });
    this.input = element.querySelector("input");
    this.list = element.querySelector("ul");
    this.input.addEventListener("change", () => {
      const files = [...this.input.files];
      this.input.value = ""; // the same file may be chosen again
      this.take(files);
    });
  }

  /** Opens files and puts them beside the recordings that are there. */
  async take(files) {
    for (const file of files) {
      try {
        if (this.all.length === MOST) throw new Error(`A question may have ${MOST} recordings at most.`);
        this.show([...this.all, await openSound(file)]);
      } catch (error) {
        this.onerror(error.message);
      }
    }
  }

  show(all) {
    this.all = all;
    this.list.replaceChildren(
      ...all.map((one) => {
        const remove = h("button", { type: "button", className: "plain", ariaLabel: `Remove ${one.name}` }, "Remove");
        remove.addEventListener("click", () => {
          this.show(this.all.filter((other) => other !== one));
          this.input.focus();
        });
        return h("li", {}, h("span", {}, one.name), player(one), remove);
      }),
    );
  }
}
