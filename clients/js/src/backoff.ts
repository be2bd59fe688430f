const [FIRST, LONGEST] = [250, 10_000]

/** Pauses that grow, each a little different, so that many clients do not come back at once. */
export class Backoff {
  #tries = 0
  #timer: ReturnType<typeof setTimeout> | undefined

  /** Calls back after the next pause. What was to be called before is not. */
  schedule(callback: () => void): void {
    this.cancel()
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      callback()
    }, pause(++this.#tries))
  }

  /** Whether something is to be called. */
  get isWaiting(): boolean {
    return this.#timer !== undefined
  }

  /** It went well: the next pause is a short one again. */
  reset(): void {
    this.cancel()
    this.#tries = 0
  }

  /** What was to be called is not. */
  cancel(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }
}

/** How long to wait before such a try, in ms. */
export function pause(tries: number): number {
  const longest = Math.min(LONGEST, FIRST * 2 ** Math.min(tries - 1, 10))
  return longest * (0.5 + Math.random() / 2)
}
