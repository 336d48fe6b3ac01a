/* Follows the tasks of all {% aiotasks_progress %} bars of a page: by Server-Sent Events, or by polling where there
   are none. Each change is also an event on its bar: "aiotasks:change", with the task's state as its detail. */
"use strict";

(() => {
  if (window.aiotasksProgress) return; // several bars, one script
  window.aiotasksProgress = true;

  const BAR = "[data-aiotasks-token]";
  const TOKENS_OF_A_FEED = 30; // of about 150 characters: servers accept addresses of 8,000
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
    if (seconds < 60) return `${Math.ceil(seconds)} s`;
    if (seconds < 3600) return `${Math.ceil(seconds / 60)} min`;
    return `${Math.floor(seconds / 3600)} h ${Math.ceil((seconds % 3600) / 60)} min`;
  }

  function draw(bar, state) {
    const status = state.status || "UNKNOWN";
    const texts = bar.dataset;
    const name = texts[`aiotasksText${status[0]}${status.slice(1).toLowerCase()}`] || status;
    const share = shareOf(state);
    const isRunning = status === "RUNNING";
    const progress = state.progress || {};
    const percent = share === null ? "" : `${Math.floor(share * 100)} %`;
    const message = typeof progress.message === "string" && status !== "SUCCESSFUL" ? progress.message : "";
    const left = isRunning && isNumber(progress.eta) && share < 1 ? timeLeft(progress.eta) : "";
    const element = part(bar, "bar");
    if (element && share !== null) element.value = share;
    else if (element && isRunning) element.removeAttribute("value"); // it moves, and says nothing of how much
    else if (element && status === "READY") element.value = 0;
    bar.dataset.aiotasksStatus = status;
    setText(part(bar, "percent"), percent);
    setText(part(bar, "status"), name);
    setText(part(bar, "message"), message);
    setText(part(bar, "left"), left && (texts.aiotasksTextLeft || "%time%").replace("%time%", () => left));
    announce(bar, status, [part(bar, "label")?.textContent, name, percent].filter(Boolean).join(", "));
    bar.dispatchEvent(new CustomEvent("aiotasks:change", { bubbles: true, detail: state }));
  }

  const announced = new WeakMap();

  function announce(bar, status, text) {
    const last = announced.get(bar);
    const now = Date.now();
    if (last && last.status === status && now - last.at < ANNOUNCE_INTERVAL) return;
    announced.set(bar, { status, at: now });
    if (last) setText(part(bar, "live"), text); // not what the page says already
  }

  // --- Several bars with one connection

  class Feed {
    constructor(url, tokens) {
      this.key = [url, ...tokens].join("\n");
      this.url = new URL(url, document.baseURI);
      for (const token of tokens) this.url.searchParams.append("token", token);
      this.polls = typeof EventSource === "undefined";
      this.isOver = false;
      this.failures = 0;
    }

    start() {
      if (this.isOver || this.source || this.timer || this.request) return;
      if (this.polls) this.poll();
      else this.listen();
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

    listen() {
      const source = new EventSource(this.url);
      this.source = source;
      source.onmessage = (event) => this.show(event.data);
      source.addEventListener("end", () => this.end());
      source.onerror = () => {
        // Otherwise the browser comes back by itself.
        if (source.readyState !== EventSource.CLOSED || this.source !== source) return;
        this.stop();
        this.polls = true; // it says why
        this.poll();
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
          this.failures = 0;
          this.show(await response.text());
        } else if (response.status < 500 && response.status !== 429) {
          return this.refuse();
        }
        const after = Number(response.headers.get("Retry-After"));
        if (after > 0) pause = after * 1000;
        else if (!response.ok) pause = this.backoff();
      } catch {
        if (request.signal.aborted) return;
        pause = this.backoff();
      }
      if (this.request !== request) return; // stopped meanwhile
      this.request = null;
      if (pause === null) this.end();
      else this.timer = setTimeout(() => this.poll(), Math.max(pause, SHORTEST_POLL));
    }

    backoff() {
      this.failures += 1;
      return Math.min(2_000 * 2 ** this.failures, LONGEST_POLL);
    }

    /* The server knows the tasks no more, or may not show them any more. */
    refuse() {
      this.end();
      for (const bar of document.querySelectorAll(BAR)) {
        if (this.key.split("\n").includes(bar.dataset.aiotasksToken)) {
          draw(bar, { id: bar.dataset.aiotasksId, status: null, is_finished: true });
          delete bar.dataset.aiotasksToken;
        }
      }
    }

    show(text) {
      for (const state of JSON.parse(text).tasks) {
        for (const bar of document.querySelectorAll(`[data-aiotasks-id="${CSS.escape(state.id)}"]`)) {
          draw(bar, state);
          if (state.is_finished) bar.removeAttribute("data-aiotasks-token");
        }
      }
    }
  }

  // --- The page

  let feeds = new Map();

  /* Follow the bars that the page has now. Feeds whose bars are the same go on. */
  function scan() {
    const tokens = new Map(); // by address
    for (const bar of document.querySelectorAll(BAR)) {
      const url = bar.dataset.aiotasksUrl;
      if (!tokens.has(url)) tokens.set(url, new Set());
      tokens.get(url).add(bar.dataset.aiotasksToken);
    }
    const wanted = new Map();
    for (const [url, some] of tokens) {
      const all = [...some];
      for (let n = 0; n < all.length; n += TOKENS_OF_A_FEED) {
        const feed = new Feed(url, all.slice(n, n + TOKENS_OF_A_FEED));
        wanted.set(feed.key, feeds.get(feed.key) || feed);
      }
    }
    for (const [key, feed] of feeds) if (!wanted.has(key)) feed.stop();
    feeds = wanted;
    pauseOrGoOn();
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
