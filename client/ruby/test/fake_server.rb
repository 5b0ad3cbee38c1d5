# frozen_string_literal: true

require "json"
require "open3"

# A fake server as a process, scripted over its standard input; FAKE_SERVER_PYTHON has the package `alignserve`.
class FakeServer
  PYTHON = ENV.fetch("FAKE_SERVER_PYTHON", File.expand_path("../../../.venv/bin/python", __dir__))

  attr_reader :target

  def initialize
    @input, @output, @process = Open3.popen2(PYTHON, "-m", "alignserve.testing")
    @target = JSON.parse(@output.gets)["target"]
  end

  def call(name, **arguments)
    @input.puts(JSON.generate(call: name, arguments:))
    JSON.parse(@output.gets).fetch("ok")
  end

  def stop
    @input.close
    @process.join
  end
end
