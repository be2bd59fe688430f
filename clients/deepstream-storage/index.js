'use strict'

const { Connector } = require('./lib/connector')

module.exports = { Connector, default: Connector }
