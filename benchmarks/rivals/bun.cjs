"use strict";
// Bun.serve, its own publish and subscribe.

const { obey, port } = require("./control.cjs");

const server = Bun.serve({
  hostname: "127.0.0.1",
  port,
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("expected a WebSocket", { status: 426 });
  },
  websocket: {
    open(ws) {
      ws.subscribe("broadcast");
    },
    message(ws, text) {
      ws.send(text);
    },
  },
});

obey((channel, data) => server.publish(channel, JSON.stringify(data)));
