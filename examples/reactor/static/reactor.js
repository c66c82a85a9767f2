// The hub's events as CustomEvents of the page:
//
//     import { connect } from "/static/reactor.js";
//     window.addEventListener("task.completed", (event) => console.log(event.detail));
//     const disconnect = connect();
//
// A lost connection is opened again, and goes on where it was: no event is missed, none comes twice. The page
// hears of it too: "reactor:open", "reactor:closed" (detail.retry: seconds, or null for never), and
// "reactor:missed" where something is lost after all, so that the page can load its data anew.

const SHORTEST = 0.5; // seconds to wait before the first attempt to reconnect; twice as long each time,
const LONGEST = 15; // up to this
const GRACE = 10; // seconds that a heartbeat may be late

export function connect(url = "/ws/stream") {
  const positions = new Map(); // channel → where to go on after a reconnect
  let socket;
  let heartbeat = 25; // seconds; the welcome says how many
  let failures = 0;
  let delay; // [least, most] seconds to wait, where the server has said so
  let retrying, silence; // timers

  function open() {
    delay = undefined;
    socket = new WebSocket(address(url, positions));
    socket.onmessage = (message) => hear(JSON.parse(message.data));
    socket.onclose = (event) => lost(event.code, event.reason);
    expectMore();
  }

  function hear(message) {
    expectMore();
    switch (message.type) {
      case "welcome":
        failures = 0;
        heartbeat = message.heartbeat;
        tell("reactor:open", message);
        break;
      case "event":
        tell(message.event, message.data);
        moved(message);
        break;
      case "subscribed":
      case "gap":
        moved(message);
        if (message.type === "gap" || message.recovered === false) tell("reactor:missed", message.channel);
        break;
      case "position":
        moved(message);
        break;
      case "ping":
        socket.send('{"type":"pong"}');
        break;
      case "disconnect":
        delay = message.delay;
        break;
    }
  }

  function moved({ channel, epoch, offset }) {
    if (offset === undefined) return; // a channel without history
    positions.set(channel, { epoch: epoch ?? positions.get(channel).epoch, offset });
  }

  function expectMore() {
    clearTimeout(silence);
    silence = setTimeout(lost, (heartbeat + GRACE) * 1000, 4105, "no sign of life");
  }

  function lost(code, reason) {
    clearTimeout(silence);
    clearTimeout(retrying);
    socket.onmessage = socket.onclose = null;
    socket.close();
    const retry = mayRetry(code) ? between(...(delay ?? backoff(failures))) : null;
    if (retry !== null) retrying = setTimeout(open, retry * 1000);
    failures += 1;
    tell("reactor:closed", { code, reason, retry });
  }

  open();
  return () => lost(1000, "closed by the page");
}

function tell(type, detail) {
  window.dispatchEvent(new CustomEvent(type, { detail }));
}

function address(url, positions) {
  const target = new URL(url, location.href);
  target.protocol = target.protocol.replace("http", "ws");
  for (const [channel, { epoch, offset }] of positions) {
    target.searchParams.append("resume", `${epoch}.${offset}.${channel}`);
  }
  return target;
}

// The range of a close code says whether to come back.
function mayRetry(code) {
  return code !== 1000 && code !== 1008 && !(code >= 4000 && code < 4100);
}

// Never all pages at the same moment.
function backoff(failures) {
  const longest = Math.min(LONGEST, SHORTEST * 2 ** failures);
  return [longest / 2, longest];
}

function between(least, most) {
  return least + Math.random() * (most - least);
}
