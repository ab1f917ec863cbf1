// Perfetto's trace_processor as its web page has it, in WebAssembly. The argument is the page's folder. Requests
// (TraceProcessorRpcStream) come on stdin and replies go to stdout, each after its length (4 bytes).
const { readFileSync, readSync, writeSync } = require("fs");
const { basename, join } = require("path");
const { runInThisContext } = require("vm");
const folder = process.argv[2];

// What the page's worker has around it, and Node has not.
Object.defineProperty(process, "versions", { value: {} }); // Emscripten refuses Node by it
globalThis.self = globalThis;
globalThis.WorkerGlobalScope = class {};
globalThis.location = { href: "" };
globalThis.XMLHttpRequest = class {
  open(_, url) {
    this.response = readFileSync(join(folder, basename(url)));
  }
  send() {}
};
console.log = console.warn = console.error; // stdout is for replies

function read(length) {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at < length; ) {
    const more = readSync(0, bytes, at, length - at);
    if (!more) process.exit(0);
    at += more;
  }
  return bytes;
}

function write(bytes) {
  for (let at = 0; at < bytes.length; ) at += writeSync(1, bytes, at);
}

const port = {
  postMessage(reply) {
    const length = Buffer.alloc(4);
    length.writeUInt32LE(reply.length);
    write(length);
    write(reply);
  },
};
runInThisContext(readFileSync(join(folder, "engine_bundle.js"), "utf8"));
self.onmessage({ data: port });
setImmediate(() => {
  for (;;) port.onmessage({ data: new Uint8Array(read(read(4).readUInt32LE())) });
});
