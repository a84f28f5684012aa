// Browsers start no worker from a file. The search of a page that was opened from a folder runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentDocument
      this.answer = (event) => {
        if (event.source !== this.frame.contentWindow) return
        const message = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(message)
        this.onmessage?.(message)
      }
      addEventListener("message", this.answer)
      // A worker posts to its page, and loads scripts that are there when the call returns.
      this.ready = new Promise((resolve) => this.frame.contentWindow.started = resolve)
      inside.open()
      inside.write(`<script>
        postMessage = (data) => parent.dispatchEvent(new MessageEvent("message", { data, source: window }))
        importScripts = (...urls) => urls.reduce((before, url) => before.then(() => new Promise((resolve) => {
          document.body.append(Object.assign(document.createElement("script"), { src: url, onload: resolve }))
        })), Promise.resolve())
      </script><body><script src="${url}" onload="started()"></script>`)
      inside.close()
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      removeEventListener("message", this.answer)
      this.frame.remove()
    }
  }
}
