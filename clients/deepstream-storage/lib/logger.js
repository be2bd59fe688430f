'use strict'

const { EOL } = require('node:os')

const NAMESPACE = 'POSTGRES'

/** The server's logger, or one that writes to stdout and stderr where there is no server. */
function loggerOf(services) {
  if (services?.logger) return services.logger.getNameSpace(NAMESPACE)
  const to = (stream) => (event, message) => stream.write(`${NAMESPACE} | ${event} | ${message}${EOL}`)
  return { info: to(process.stdout), warn: to(process.stderr), error: to(process.stderr) }
}

module.exports = { loggerOf }
