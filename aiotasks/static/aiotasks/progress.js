/* Follows the tasks of all {% aiotasks_progress %} bars of a page: by Server-Sent Events, or by polling where there
   are none. Each change is also an event on its bar: "aiotasks:change", with the task's state as its detail. */
"use strict";

(() => {
  if (window.aiotasksProgress) return; // several bars, one script
  window.aiotasksProgress = true;

  const BAR = "[data-aiotasks-token]";
  const LONGEST_URL = 3_500; // characters: servers accept 4,000 at least
  const MOST_STREAMS = 2; // of the six connections that a browser opens to a server over HTTP/1.1
  const MOST_ATTEMPTS = 10; // to open a stream, one after another in vain
  const STREAM_PAUSE = 30_000; // ms, times the attempts so far: where none was ever open, the server may have none
  const ANNOUNCE_INTERVAL = 10_000; // ms: a screen reader that reads out each step says nothing else any more
  const SHORTEST_POLL = 1_000;
  const LONGEST_POLL = 60_000;

  // --- One bar

  const part = (bar, name) => bar.querySelector(`.aiotasks-progress-${name}`);
  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  function setText(element, text) {
    if (element && element.textContent !== text) element.textContent = text;
  }

  function shareOf(state) {
    if (state.status === "SUCCESSFUL") return 1;
    const { done, total } = state.progress || {};
    return isNumber(done) && isNumber(total) && total > 0 ? Math.min(Math.max(done / total, 0), 1) : null;
  }

  function timeLeft(seconds) {
    if (seconds <= 59) return `${Math.ceil(seconds)} s`;
    const minutes = Math.ceil(seconds / 60);
    return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  function draw(bar, state) {
    const status = state.is_cancelled ? "CANCELLED" : state.status || "UNKNOWN";
    const texts = bar.dataset;
    const name = texts[`aiotasksText${status[0]}${status.slice(1).toLowerCase()}`] || status;
    const share = shareOf(state);
    const isRunning = status === "RUNNING";
    const progress = state.progress || {};
    const percent = share === null ? "" : `${Math.floor(share * 100 + 1e-9)} %`; // 0.29 * 100 < 29
    const message = typeof progress.message === "string" && status !== "SUCCESSFUL" ? progress.message : "";
    const left = isRunning && isNumber(progress.eta) && share < 1 ? timeLeft(progress.eta) : "";
    const element = part(bar, "bar");
    if (element && share !== null) element.value = share;
    else if (element && isRunning) element.removeAttribute("value"); // it moves, and says nothing of how much
    else if (element && (status === "READY" || element.position < 0)) element.value = 0; // what has failed stands still
    bar.dataset.aiotasksStatus = status;
    setText(part(bar, "percent"), percent);
    setText(part(bar, "status"), name);
    setText(part(bar, "message"), message);
    setText(part(bar, "left"), left && (texts.aiotasksTextLeft || "%time%").replace("%time%", () => left));
    announce(bar, status, [part(bar, "label")?.textContent, name, percent].filter(Boolean).join(", "));
    bar.dispatchEvent(new CustomEvent("aiotasks:change", { bubbles: true, detail: state }));
  }

  const announced = new WeakMap(); // each bar's status
  let announcedAt = Date.now();

  /* Read out the status when it changes, and how far one of the page's tasks is when nothing was read out for a time. */
  function announce(bar, status, text) {
    const last = announced.get(bar);
    const now = Date.now();
    announced.set(bar, status);
    if (!last) return; // the page says so already
    if (last === status && now - announcedAt < ANNOUNCE_INTERVAL) return;
    announcedAt = now;
    setText(part(bar, "live"), text);
  }

  // --- Several bars with one connection

  let hasStreamed = false;
  let attempts = 0; // to open a stream, since one was open
  let nextAttemptAt = 0; // where none was ever open

  class Feed {
    constructor(url, tokens) {
      this.key = [url, ...tokens].join("\n");
      this.tokens = tokens;
      this.url = new URL(url, document.baseURI);
      for (const token of tokens) this.url.searchParams.append("token", token);
      this.isOver = false;
      this.hasFailed = false; // for a time: the server was away, perhaps
      this.failures = 0;
    }

    start() {
      if (this.isOver || this.source || this.timer || this.request) return;
      if (this.mayListen()) this.listen();
      else this.poll();
    }

    stop() {
      this.source?.close();
      this.request?.abort();
      clearTimeout(this.timer);
      this.source = this.request = this.timer = null;
    }

    end() {
      this.isOver = true;
      this.stop();
    }

    /* An EventSource doesn't say why it was refused: the server may have no streams, or was away at that moment. */
    mayListen() {
      if (typeof EventSource === "undefined" || attempts >= MOST_ATTEMPTS) return false;
      if (!hasStreamed && !this.hasFailed && Date.now() < nextAttemptAt) return false;
      return [...feeds.values()].filter((feed) => feed.source).length < MOST_STREAMS;
    }

    listen() {
      this.hasFailed = false;
      const source = new EventSource(this.url);
      this.source = source;
      source.onopen = () => {
        hasStreamed = true;
        attempts = 0;
      };
      source.onmessage = (event) => this.show(JSON.parse(event.data).tasks);
      source.addEventListener("end", () => this.end());
      source.onerror = () => {
        // Otherwise the browser comes back by itself.
        if (source.readyState !== EventSource.CLOSED || this.source !== source) return;
        this.stop();
        attempts += 1;
        nextAttemptAt = Date.now() + STREAM_PAUSE * attempts;
        this.poll(); // it says why
      };
    }

    async poll() {
      this.timer = null;
      const request = new AbortController();
      this.request = request;
      let pause = null; // none: there is nothing to come
      try {
        const response = await fetch(this.url, {
          headers: { Accept: "application/json" },
          credentials: "same-origin",
          cache: "no-store",
          signal: request.signal,
        });
        if (response.ok) {
          const tasks = await tasksOf(response);
          if (this.request !== request) return; // stopped meanwhile
          if (!tasks) return this.lose(); // a page to log in, for one
          this.show(tasks);
          this.failures = 0;
        } else if (response.status < 500 && response.status !== 429) {
          return this.refuse(response.status);
        }
        const after = Number(response.headers.get("Retry-After"));
        const own = response.ok ? null : this.backoff();
        pause = after > 0 ? after * 1000 : own;
      } catch {
        if (request.signal.aborted) return;
        pause = this.backoff();
      }
      if (this.request !== request) return; // stopped meanwhile
      this.request = null;
      if (pause === null) return this.end();
      this.timer = setTimeout(() => {
        this.timer = null;
        if (this.failures) this.poll();
        else this.start();
      }, Math.max(pause, SHORTEST_POLL));
    }

    backoff() {
      this.hasFailed = true;
      this.failures += 1;
      return Math.min(2_000 * 2 ** this.failures, LONGEST_POLL);
    }

    /* One of the tokens, or the length of all, stops the others: ask for each half by itself. */
    refuse(status) {
      if (this.tokens.length === 1 || ![400, 403, 404, 414].includes(status)) return this.lose();
      this.end();
      this.tokens.forEach((token, n) => halves.set(token, (halves.get(token) || "") + (2 * n < this.tokens.length ? "0" : "1")));
      scan();
    }

    /* The server knows the tasks no more, or may not show them any more. */
    lose() {
      this.end();
      for (const bar of document.querySelectorAll(BAR)) {
        if (this.tokens.includes(bar.dataset.aiotasksToken)) {
          draw(bar, { id: bar.dataset.aiotasksId, status: null, is_finished: true });
          delete bar.dataset.aiotasksToken;
        }
      }
    }

    show(tasks) {
      for (const state of tasks) {
        for (const bar of document.querySelectorAll(`[data-aiotasks-id="${CSS.escape(state.id)}"]`)) {
          draw(bar, state);
          if (state.is_finished) bar.removeAttribute("data-aiotasks-token");
        }
      }
    }
  }

  /* The tasks of an answer; null if it is something else. */
  async function tasksOf(response) {
    if (!response.headers.get("Content-Type")?.startsWith("application/json")) return null;
    const { tasks } = await response.json();
    return Array.isArray(tasks) ? tasks : null;
  }

  // --- The page

  let feeds = new Map();
  const halves = new Map(); // by token: the way to its part of a feed that was refused, as 0s and 1s

  /* Follow the bars that the page has now. Feeds whose bars are the same go on. */
  function scan() {
    const groups = new Map(); // tokens, by address and part
    for (const { dataset } of document.querySelectorAll(BAR)) {
      const [url, token] = [dataset.aiotasksUrl, dataset.aiotasksToken];
      const group = `${halves.get(token) || ""}\n${url}`;
      if (!groups.has(group)) groups.set(group, { url, tokens: new Set() });
      groups.get(group).tokens.add(token);
    }
    const wanted = new Map();
    for (const { url, tokens } of groups.values()) {
      for (const some of byLength(tokens, LONGEST_URL - new URL(url, document.baseURI).href.length)) {
        const feed = new Feed(url, some);
        wanted.set(feed.key, feeds.get(feed.key) || feed);
      }
    }
    for (const [key, feed] of feeds) if (!wanted.has(key)) feed.stop();
    feeds = wanted;
    pauseOrGoOn();
  }

  /* Tokens, in lists whose parameters have so many characters at most. */
  function byLength(tokens, most) {
    const lists = [];
    let length = Infinity;
    for (const token of tokens) {
      const more = `&token=${encodeURIComponent(token)}`.length;
      length += more;
      if (length > most) {
        lists.push([]);
        length = more;
      }
      lists.at(-1).push(token);
    }
    return lists;
  }

  function pauseOrGoOn() {
    for (const feed of feeds.values()) {
      if (document.hidden) feed.stop();
      else feed.start();
    }
  }

  let isScanPlanned = false;

  /* For bars that other scripts put onto the page, or take away. */
  function scanSoon(changes) {
    const hasBar = (node) => node.nodeType === 1 && (node.matches("[data-aiotasks-id]") || node.querySelector("[data-aiotasks-id]"));
    const isOurs = changes.some(({ addedNodes, removedNodes }) => [...addedNodes, ...removedNodes].some(hasBar));
    if (!isOurs || isScanPlanned) return;
    isScanPlanned = true;
    setTimeout(() => {
      isScanPlanned = false;
      scan();
    }, 50);
  }

  document.addEventListener("visibilitychange", pauseOrGoOn);
  new MutationObserver(scanSoon).observe(document.documentElement, { childList: true, subtree: true });
  scan();
})();
