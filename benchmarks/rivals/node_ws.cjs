"use strict";
// Node's ws, its README's broadcast.

const WebSocket = require("ws");
const { obey, port } = require("./control.cjs");

const wss = new WebSocket.WebSocketServer({ host: "127.0.0.1", port, backlog: 2048 });

wss.on("connection", (ws) => {
  ws.on("error", () => {});
  ws.on("message", (data) => ws.send(data, { binary: false }));
});

obey((channel, data) => {
  const text = JSON.stringify(data);
  for (const client of wss.clients) {
    if (client.readyState === WebSocket.OPEN) client.send(text);
  }
});
