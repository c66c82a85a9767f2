// The Reactor for React: one connection for the tree below, and a hook for each event. It needs no build step:
// without JSX's tags it is JavaScript that every browser, bundler and test runner reads.
//
//     <ReactorProvider>
//       <Tasks />
//     </ReactorProvider>
//
//     function Tasks() {
//       const { connected } = useReactor();
//       const [totals, setTotals] = useState(null);
//       useReactorEvent("task.totals", setTotals);
//       ...
//     }

import { createContext, createElement, useContext, useEffect, useRef, useState } from "react";

import { connect } from "../static/reactor.js";

const ReactorContext = createContext({ connected: false });

export function ReactorProvider({ url, children }) {
  const [connected, setConnected] = useState(false);

  useListener("reactor:open", () => setConnected(true));
  useListener("reactor:closed", () => setConnected(false));
  useEffect(() => connect(url), [url]);

  return createElement(ReactorContext.Provider, { value: { connected } }, children);
}

export function useReactor() {
  return useContext(ReactorContext);
}

export function useReactorEvent(type, handler) {
  useListener(type, (event) => handler(event.detail));
}

// The listener may be another function at every render; the page listens once.
function useListener(type, listener) {
  const latest = useRef(listener);
  useEffect(() => {
    latest.current = listener;
  });
  useEffect(() => {
    const listen = (event) => latest.current(event);
    window.addEventListener(type, listen);
    return () => window.removeEventListener(type, listen);
  }, [type]);
}
