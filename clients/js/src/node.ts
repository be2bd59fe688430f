/** What is for Node only.
 * @module */
export { FileStore } from './file-store.js'
