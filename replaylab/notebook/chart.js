// The figure in a page of a notebook. A zoom sends one message and gets one, since each costs its time in the queues of
// kernel, server and page; the next range is sent when the prices of the last one came.
const NO_KERNEL = "The chart waits for the kernel that made it. Where that one has ended, run the cell again; a file of " +
  "chart.save(path) needs none."

// Bokeh's code comes from the kernel, once for a page.
async function library(model, el) {
  const ask = () => new Promise(done => {
    const take = (message) => {
      if (message && !message.bokeh) return
      clearTimeout(late)
      model.off("msg:custom", take)
      if (message && !window.Bokeh) {
        const script = document.createElement("script")
        script.textContent = message.bokeh
        document.head.append(script)
      }
      done()
    }
    const late = setTimeout(take, 15000)
    model.on("msg:custom", take)
    model.send({bokeh: true})
  })
  if (!window.Bokeh) await (window.replaylabLibrary ??= ask())
  while (!window.Bokeh) {
    el.textContent = NO_KERNEL
    await ask()
  }
}

async function render({model, el}) {
  const id = Math.random()
  let shown = null
  await library(model, el)

  async function draw() {
    shown?.document.clear()
    el.replaceChildren()
    const [view] = await Bokeh.embed.embed_item(JSON.parse(model.get("item")), el)
    const document = view.model.document
    const named = (name) => document.get_model_by_name(name)
    const plot = named("plot"), range = plot.x_range, cursor = named("cursor")
    const chart = shown = {
      document, range, cursor, sources: ["price", "bid", "ask"].map(named), moving: false, since: 0, asked: [],
    }
    range.change.connect(() => ask(chart))
    plot.on_event("doubletap", (event) => model.send({seek: event.x}))
    cursor.change.connect(() => chart.moving || model.send({seek: cursor.location}))
  }

  function ask(chart) {
    const now = performance.now(), {start, end} = chart.range
    if (chart.since && now - chart.since < 5000 || chart.asked[0] === start && chart.asked[1] === end) return
    chart.since = now
    chart.asked = [start, end]
    model.send({view: chart.asked, id})
  }

  function take(message, buffers) {
    const chart = shown
    if (!chart) return
    if (message.id === id) {
      const arrays = buffers.map(b => new Float64Array(b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength)))
      chart.sources.forEach((source, k) => {
        const [x, y] = arrays.slice(2 * k)
        if (x.length || source.data.x.length) source.data = {x, y}
      })
      chart.since = 0
      ask(chart)
    }
    if (message.cursor !== undefined) {
      chart.moving = true
      chart.cursor.location = message.cursor
      chart.moving = false
    }
    if (message.view && !message.id) chart.range.setv({start: message.view[0], end: message.view[1]})
  }

  model.on("msg:custom", take)
  model.on("change:item", draw)
  await draw()
  return () => {
    model.off("msg:custom", take)
    model.off("change:item", draw)
    shown?.document.clear()
  }
}
export default {render}
