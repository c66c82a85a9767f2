"use strict";
// Socket.IO: emit goes to all.

const { Server } = require("socket.io");
const { createServer } = require("node:http");
const { obey, port } = require("./control.cjs");

const http = createServer();
const io = new Server(http);
io.on("connection", (socket) => socket.on("echo", (data, answer) => answer(data)));
http.listen({ host: "127.0.0.1", port, backlog: 2048 });

obey((channel, data) => io.emit(channel, data));
