// <stem-player song='{"name", "sampleRate", "channels", "samples", "notes", "picture", "tracks": [{name, title, url}]}'>
//
// Plays a song and its stems in step. All tracks are WAVs of 16 bits and one length; pieces of them are fetched shortly
// before they are due and scheduled at one and the same sample of the audio clock, so that stems neither drift apart
// nor fill the memory, however long the song is. The balance turns down one stem or the other: in the middle both are
// as they are, and their sum is the song.
(() => {
  const PIECE_S = 2; // fetched at a time
  const AHEAD_S = 6; // fetched before it is due
  const START_S = 0.1; // for the first piece to reach the sound card
  const FADE_S = 0.01; // no click when the balance moves
  const SETTLE_MS = 80; // after a move, so that dragging does not fetch all it passes

  /** @returns {{vocals: number, accompaniment: number}} gains for a balance from -1, vocals alone, to 1. */
  const gainsOf = (balance) => ({ vocals: Math.min(1, 1 - balance), accompaniment: Math.min(1, 1 + balance) });

  const clock = (seconds) => {
    const whole = Math.floor(seconds);
    const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
    const two = (number) => String(number).padStart(2, "0");
    return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
  };

  const kindOf = (channels) => ({ 1: "mono", 2: "stereo" })[channels] ?? `${channels} channels`;

  const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

  /** An element with properties, attributes (in `set`) and children. */
  const make = (tag, { set = {}, ...properties } = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    for (const [name, value] of Object.entries(set)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  /** A 16-bit WAV on the server, read in pieces. */
  class Wav {
    constructor(url, channels) {
      this.url = url;
      this.channels = channels;
    }

    async bytes(first, count) {
      const response = await fetch(this.url, { headers: { Range: `bytes=${first}-${first + count - 1}` } });
      if (!response.ok) throw new Error(response.status === 404 ? "gone" : `status ${response.status}`);
      return response.arrayBuffer();
    }

    /** Where the samples begin: RIFF chunks are a name, a size and as many bytes, to an even number. */
    async start() {
      if (this.first === undefined) {
        const header = new DataView(await this.bytes(0, 4096));
        const name = (at) => String.fromCharCode(...[0, 1, 2, 3].map((i) => header.getUint8(at + i)));
        let at = 12;
        while (name(at) !== "data") at += 8 + header.getUint32(at + 4, true) + (header.getUint32(at + 4, true) % 2);
        this.first = at + 8;
      }
      return this.first;
    }

    async piece(context, sample, count) {
      const width = 2 * this.channels;
      const values = new Int16Array(await this.bytes((await this.start()) + sample * width, count * width));
      const buffer = context.createBuffer(this.channels, count, context.sampleRate);
      for (let channel = 0; channel < this.channels; channel++) {
        const samples = buffer.getChannelData(channel);
        for (let i = 0; i < count; i++) samples[i] = values[i * this.channels + channel] / 32768;
      }
      return buffer;
    }
  }

  /** The tracks of a song, in step. */
  class Tracks {
    constructor(song) {
      Object.assign(this, { song, playing: false, run: 0, from: 0, wanted: {}, sources: new Set() });
      this.wavs = Object.fromEntries(song.tracks.map(({ name, url }) => [name, new Wav(`${url}.wav`, song.channels)]));
    }

    /** The audio context, and for each track the node where it is as it is, and its gain. Needs a click before. */
    open() {
      if (this.context) return;
      const context = new AudioContext({ sampleRate: this.song.sampleRate });
      this.nodes = {};
      for (const { name } of this.song.tracks) {
        const [input, gain] = [context.createGain(), context.createGain()];
        gain.gain.value = this.wanted[name] ?? 0;
        input.connect(gain).connect(context.destination);
        this.nodes[name] = { input, gain };
      }
      this.context = context;
    }

    get now() {
      return Math.round(this.context.currentTime * this.song.sampleRate);
    }

    /** The sample that is heard. */
    get position() {
      if (!this.playing || this.origin === undefined) return this.from;
      return Math.min(Math.max(this.now - this.origin, this.from), this.song.samples);
    }

    setGains(gains) {
      this.wanted = gains;
      for (const [name, { gain }] of Object.entries(this.nodes ?? {})) {
        gain.gain.setTargetAtTime(gains[name] ?? 0, this.context.currentTime, FADE_S);
      }
    }

    async play() {
      this.open();
      this.playing = true; // at once: the rest takes its time
      await this.context.resume();
      if (this.playing) await this.playFrom(this.from);
    }

    /** Schedules piece after piece until something else is asked for. */
    async playFrom(sample) {
      this.silence(sample);
      const run = this.run;
      this.playing = true;
      const rate = this.song.sampleRate;
      for (let next = sample; next < this.song.samples; ) {
        const count = Math.min(Math.round(PIECE_S * rate), this.song.samples - next);
        const buffers = await this.pieces(next, count);
        if (run !== this.run) return;
        const soonest = this.now + Math.round(START_S * rate);
        // origin: where on the audio clock the song's first sample is; later for the first piece, and for a late one
        if (this.origin === undefined || this.origin + next < this.now) this.origin = soonest - next;
        for (const [name, buffer] of Object.entries(buffers)) this.schedule(name, buffer, (this.origin + next) / rate);
        next += count;
        while (this.origin + next - this.now > AHEAD_S * rate) {
          await sleep(200);
          if (run !== this.run) return;
        }
      }
    }

    async pieces(sample, count) {
      const names = Object.keys(this.wavs);
      const buffers = await Promise.all(names.map((name) => this.wavs[name].piece(this.context, sample, count)));
      return Object.fromEntries(names.map((name, i) => [name, buffers[i]]));
    }

    schedule(name, buffer, time) {
      const source = new AudioBufferSourceNode(this.context, { buffer });
      source.connect(this.nodes[name].input);
      source.onended = () => {
        source.disconnect();
        this.sources.delete(source);
      };
      source.start(time);
      this.sources.add(source);
    }

    /** Stops all sound and stands at `sample`. */
    silence(sample) {
      this.run += 1; // what awaits in `playFrom` is over
      for (const source of this.sources) source.stop();
      this.sources.clear();
      Object.assign(this, { playing: false, from: sample, origin: undefined });
    }

    pause() {
      this.silence(this.position);
    }

    close() {
      this.silence(0);
      this.context?.close();
    }
  }

  class StemPlayer extends HTMLElement {
    connectedCallback() {
      if (this.tracks) return;
      this.song = JSON.parse(this.getAttribute("song"));
      this.tracks = new Tracks(this.song);
      this.balance = 0;
      this.original = false; // whether the song itself is heard, not its stems
      const style = make("style", { textContent: document.getElementById("player-style").textContent });
      const strips = this.song.tracks.map((track) => this.strip(track));
      const root = this.attachShadow({ mode: "open" });
      root.append(style, this.heading(), this.transport(), this.mixer(), ...strips, this.footing());
      this.hear();
      this.show();
    }

    disconnectedCallback() {
      cancelAnimationFrame(this.frame);
      this.tracks?.close();
    }

    // what tests and curious people read

    get playing() {
      return this.tracks.playing;
    }

    /** In seconds. */
    get position() {
      return this.tracks.position / this.song.sampleRate;
    }

    /** What each track is turned to. */
    get gains() {
      const stems = gainsOf(this.balance);
      const on = (name) => (name === "mixture" ? Number(this.original) : this.original ? 0 : (stems[name] ?? 1));
      return Object.fromEntries(this.song.tracks.map(({ name }) => [name, on(name)]));
    }

    // parts

    heading() {
      const { name, samples, sampleRate, channels, notes } = this.song;
      const facts = `${clock(samples / sampleRate)}, ${sampleRate / 1000} kHz, ${kindOf(channels)}`;
      const lines = notes.map((note) => make("p", { className: "fine", textContent: note }));
      return make("header", {}, make("h2", { textContent: name }), make("p", { className: "fine", textContent: facts }), ...lines);
    }

    transport() {
      this.button = make("button", { className: "play", type: "button", onclick: () => this.toggle() });
      this.elapsed = make("output", { className: "time" });
      const total = this.song.samples / this.song.sampleRate;
      this.seek = make("input", { type: "range", className: "seek", min: 0, max: total, step: "any", value: 0, set: { "aria-label": "Position" } });
      this.seek.oninput = () => this.moveTo(Number(this.seek.value));
      const length = make("span", { className: "time", textContent: clock(total) });
      return make("div", { className: "transport" }, this.button, this.elapsed, this.seek, length);
    }

    mixer() {
      this.slider = make("input", { type: "range", min: -1, max: 1, step: 0.01, value: 0, className: "balance" });
      this.slider.setAttribute("aria-label", "Balance of vocals and accompaniment");
      this.slider.oninput = () => this.setBalance(Number(this.slider.value));
      this.slider.ondblclick = () => this.setBalance(0);
      const at = (balance, textContent, className = "end") =>
        make("button", { type: "button", className, textContent, onclick: () => this.setBalance(balance) });
      const both = at(0, "Both", "end both");
      return make("div", { className: "mixer" }, at(-1, "Vocals"), this.slider, at(1, "Accompaniment"), both);
    }

    strip({ name, title, url }) {
      const listen = make("button", { type: "button", className: "listen", textContent: "Listen" });
      listen.onclick = () => this.listen(name);
      const download = make("a", { href: `${url}.wav`, download: `${this.song.name} - ${name}.wav`, textContent: "Download" });
      const picture = make("img", { src: `${url}.png`, alt: `Spectrogram: ${title}`, draggable: false });
      const cursor = make("div", { className: "cursor" });
      const frame = make("div", { className: "picture" }, picture, cursor);
      const follow = (event) => {
        const { left, width } = frame.getBoundingClientRect();
        const share = Math.min(1, Math.max(0, (event.clientX - left) / width));
        this.moveTo((share * this.song.samples) / this.song.sampleRate);
      };
      frame.onpointerdown = (event) => {
        frame.setPointerCapture(event.pointerId);
        follow(event);
      };
      frame.onpointermove = (event) => event.buttons && follow(event);
      const head = make("div", { className: "head" }, make("h3", { textContent: title }), listen, download);
      return make("section", { className: "track", set: { "data-track": name } }, head, frame);
    }

    footing() {
      this.problem = make("p", { className: "message", hidden: true, set: { role: "alert" } });
      const picture = make("a", { href: this.song.picture, target: "_blank", textContent: "Spectrograms and mask in one picture" });
      return make("footer", {}, this.problem, make("p", { className: "fine" }, picture));
    }

    // what can be done

    toggle() {
      clearTimeout(this.settling);
      if (this.playing) this.tracks.pause();
      else this.attempt(this.tracks.play());
      this.show();
    }

    moveTo(seconds) {
      const sample = Math.round(Math.min(seconds * this.song.sampleRate, this.song.samples));
      const playing = this.playing;
      this.tracks.silence(sample);
      this.tracks.playing = playing;
      clearTimeout(this.settling);
      const go = () => this.playing && this.attempt(this.tracks.playFrom(sample));
      this.settling = setTimeout(go, SETTLE_MS);
      this.show();
    }

    setBalance(balance) {
      this.original = false;
      this.balance = balance;
      this.hear();
    }

    /** One track alone. */
    listen(name) {
      this.original = name === "mixture";
      if (!this.original) this.balance = name === "vocals" ? -1 : 1;
      this.hear();
      if (!this.playing) this.toggle();
    }

    async attempt(promise) {
      try {
        this.problem.hidden = true;
        await promise;
      } catch (error) {
        this.tracks.pause();
        this.problem.textContent = this.explain(error);
        this.problem.hidden = false;
      }
    }

    explain(error) {
      const { channels, sampleRate } = this.song;
      if (error.message === "gone") return "The files of this song are no longer kept. Drop it again.";
      if (error.name === "NotSupportedError")
        return `This browser does not play ${kindOf(channels)} at ${sampleRate} Hz. The downloads are not affected.`;
      return `The song cannot be played: ${error.message}`;
    }

    hear() {
      const gains = this.gains;
      this.tracks.setGains(gains);
      this.slider.value = this.balance;
      this.classList.toggle("original", this.original);
      for (const section of this.shadowRoot.querySelectorAll(".track")) {
        const gain = gains[section.dataset.track];
        section.style.setProperty("--gain", gain);
        const alone = gain === 1 && Object.values(gains).filter((other) => other > 0).length === 1;
        section.querySelector(".listen").setAttribute("aria-pressed", alone);
      }
    }

    show() {
      cancelAnimationFrame(this.frame);
      const ended = this.playing && this.tracks.position >= this.song.samples;
      if (ended) this.tracks.silence(0);
      this.button.setAttribute("aria-label", this.playing ? "Pause" : "Play");
      this.classList.toggle("playing", this.playing);
      this.elapsed.textContent = clock(this.position);
      this.seek.value = this.position;
      this.style.setProperty("--position", this.song.samples ? this.tracks.position / this.song.samples : 0);
      if (this.playing) this.frame = requestAnimationFrame(() => this.show());
    }
  }

  customElements.define("stem-player", StemPlayer);
})();
