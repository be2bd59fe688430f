'use strict'

const { Connector } = require('./lib/connector')

// The class itself, as connectors up to the second version were, and with the names of the third.
module.exports = Object.assign(Connector, { Connector, default: Connector })
