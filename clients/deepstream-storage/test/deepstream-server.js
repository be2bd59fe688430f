'use strict'

// A deepstream server on a port, whose storage is the connector with the options given as JSON. It
// tells its parent when it runs, and stops when the parent says so or is gone.

const { Deepstream } = require('@deepstream/server')

const [, , port, options] = process.argv
const server = new Deepstream({
  httpServer: { type: 'default', options: { host: '127.0.0.1', port: Number(port) } },
  connectionEndpoints: [{ type: 'ws-binary', options: { urlPath: '/deepstream' } }],
  logger: { type: 'default', options: { logLevel: 'ERROR' } },
  storage: { path: require.resolve('..'), options: JSON.parse(options) },
})
server.on('started', () => process.send('started'))
server.on('stopped', () => process.exit(0))
process.on('message', () => server.stop())
process.on('disconnect', () => process.exit(1))
server.start()
