/** Things that arrive, taken in order by those who wait for them. */
export class Inbox {
  #items = []
  #waiters = []

  put = (item) => {
    this.#items.push(item)
    this.#serve()
  }

  /** The first item that the condition holds for; others stay. */
  take(condition = () => true) {
    return new Promise((resolve) => {
      this.#waiters.push({ condition, resolve })
      this.#serve()
    })
  }

  async takeMany(count) {
    const items = []
    while (items.length < count) items.push(await this.take())
    return items
  }

  #serve() {
    this.#waiters = this.#waiters.filter(({ condition, resolve }) => {
      const index = this.#items.findIndex(condition)
      if (index < 0) return true
      resolve(this.#items.splice(index, 1)[0])
      return false
    })
  }
}
