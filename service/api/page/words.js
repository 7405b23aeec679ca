/** The page's words. They are written in English where they are used; here they are in Chinese. */

const CHINESE = {
  "{rate} tokens/s": "{rate} tokens/秒",
  "{seconds} s": "{seconds} 秒",
  "{value} itself is not allowed.": "不能等于 {value}。",
  "API key": "API 密钥",
  Answer: "回答",
  "Answer again": "重新回答",
  "Ask again": "重新提问",
  "Ask it anything.": "想问点什么？",
  "Ask it in a new chat": "在新对话中提问",
  "Ask it to go on": "请它继续",
  "Ask now": "立即重试",
  "Asking the service…": "正在连接服务……",
  "Asks again in {seconds} s.": "{seconds} 秒后自动重试。",
  "Back to the defaults": "恢复默认值",
  "Back to the last chat": "回到上一个对话",
  Code: "代码",
  Copied: "已复制",
  Copy: "复制",
  "Copy code": "复制代码",
  "Cut at {tokens} tokens": "已达上限，在 {tokens} tokens 处截断",
  "Do not ask": "不再重试",
  Edit: "编辑",
  "Explain how a transformer attends to its context, in three sentences.": "用三句话解释 Transformer 如何关注上下文。",
  Failed: "失败",
  "Go on.": "请继续。",
  "Kept in this tab, and sent to this service alone.": "仅保存在此标签页，只发送给本服务。",
  "Leave out the oldest turns and ask again": "略去最早的几轮，再问一次",
  Loading: "正在加载",
  "New chat": "新对话",
  "Not copied": "未能复制",
  "Not reachable": "无法连接",
  "Open the settings": "打开设置",
  Question: "提问",
  Ready: "就绪",
  Send: "发送",
  Settings: "设置",
  "Shutting down": "正在关闭",
  "Slower than it could be": "未达最佳速度",
  "Something on the way garbled the answer.": "回答在传输途中损坏。",
  Starting: "正在启动",
  Stop: "停止",
  "Stopped.": "已停止。",
  "System prompt": "系统提示词",
  "The connection ended before the answer did.": "回答尚未结束，连接已断开。",
  "The service asks for an API key.": "本服务需要 API 密钥。",
  "The service cannot be reached, or the connection broke.": "无法连接服务，或连接已断开。",
  "The service does not know this API key.": "本服务不认识此 API 密钥。",
  Thinking: "深度思考",
  "Thinking has a system prompt of its own, so yours is not sent while it is on.":
    "深度思考自带系统提示词，开启时不会发送您的系统提示词。",
  "To the newest": "回到最新",
  "Use it": "使用",
  "What answered here is not the chat service ({type}).": "此处应答的不是聊天服务（{type}）。",
  "What is above is not sent any more.": "以上内容不再发送。",
  "What is the capital of France?": "法国的首都是哪里？",
  "Write a haiku about a night shift.": "写一首关于夜班的俳句。",
  You: "您",
  "You are editing your last question; its answer will be replaced.": "您正在编辑上一个问题，其回答将被替换。",
  "Your question": "您的问题",
  "begins a new chat": "开始新对话",
  "begins a new line": "换行",
  "edits the last question": "编辑上一个问题",
  "first after {seconds} s": "首字 {seconds} 秒",
  "leaves it as it is": "保持原样",
  sends: "发送",
  "stops the answer": "停止回答",
  unset: "未设置",
};

export const EXAMPLES = [
  "What is the capital of France?",
  "Write a haiku about a night shift.",
  "Explain how a transformer attends to its context, in three sentences.",
];

const isChinese = navigator.language.toLowerCase().startsWith("zh");

export const language = isChinese ? "zh-CN" : "en";

/** `text` in the reader's language, `{names}` in it replaced by `values`. */
export function say(text, values = {}) {
  const said = (isChinese && CHINESE[text]) || text;
  return said.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** What stands in the page itself. */
export function translatePage() {
  document.documentElement.lang = language;
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.textContent);
  for (const node of document.querySelectorAll("[data-say-label]")) node.setAttribute("aria-label", say(node.getAttribute("aria-label")));
}
