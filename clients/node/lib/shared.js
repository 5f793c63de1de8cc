// Listeners that many workers share: of a process, a signal or a pool each worker's own would be too many.
const sets = new WeakMap(); // by target: by event, who is told

/** Calls fn for an event of an emitter or an EventTarget, until what it returns is called. */
export function listen(target, event, fn) {
  if (!sets.has(target)) sets.set(target, new Map());
  const events = sets.get(target);
  let told = events.get(event);
  if (told === undefined) {
    const all = new Set();
    const tell = (...args) => {
      for (const one of [...all]) one(...args);
    };
    const [on, off] = target.on === undefined ? ['addEventListener', 'removeEventListener'] : ['on', 'removeListener'];
    target[on](event, tell);
    told = { all, end: () => target[off](event, tell) };
    events.set(event, told);
  }
  const one = (...args) => fn(...args); // Its own, whoever gives the same function twice.
  told.all.add(one);
  return () => {
    if (!told.all.delete(one) || told.all.size > 0) return;
    events.delete(event);
    told.end();
  };
}
