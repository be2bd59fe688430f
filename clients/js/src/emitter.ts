/** Calls listeners one by one: one that throws keeps nothing from the others. */
export class Emitter<T> {
  readonly #listeners = new Set<(value: T) => void>()

  /** Adds a listener. What is returned takes it away again. */
  add(listener: (value: T) => void): () => void {
    // Of its own, so that one can be added twice.
    const entry = (value: T) => listener(value)
    this.#listeners.add(entry)
    return () => {
      this.#listeners.delete(entry)
    }
  }

  /** Calls all that there are. */
  emit(value: T): void {
    for (const listener of [...this.#listeners]) {
      try {
        listener(value)
      } catch (error) {
        // As if the listener had been called by itself: the window's or the process's error handlers hear of it.
        queueMicrotask(() => {
          throw error
        })
      }
    }
  }
}
