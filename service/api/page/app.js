/** The page: what a question, a key or a button sets going. */

import { Answering } from "./answering.js";
import { Composer } from "./composer.js";
import { Conversation, sendable } from "./conversation.js";
import { byId, element } from "./dom.js";
import { Follow } from "./follow.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { keep, recall } from "./storage.js";
import { Transcript } from "./transcript.js";
import { EXAMPLES, say, translatePage } from "./words.js";

translatePage();
const answering = new Answering();
const settings = new Settings();
const follow = new Follow();
const status = new Status(() => answering.busy);
const composer = new Composer(send, takeUp);
let conversation;
let transcript;
let earlier = null;

/** What a turn offers besides being read. */
const offers = {
  again: () => answer(),
  edit: () => composer.edit(),
  goOn: () => send(say("Go on."), false),
  canLeaveOut: () => conversation.canLeaveOut,
  leaveOut: () => {
    conversation.leaveOutOldest();
    answer();
  },
  askAnew: () => {
    const { question } = conversation.last;
    conversation.turns.pop();
    setAside();
    send(question, false);
  },
  hasKey: () => Boolean(settings.key),
  useKey: (key) => {
    settings.key = key;
    answer();
  },
  isSetting: (name) => settings.isSetting(name),
  openSettings: (name) => settings.openAt(name),
  focusInput: () => composer.focus(),
};

/** Take a question, in place of the last one if it is an edit of it; whether it was taken. */
function send(text, isEdit) {
  if (answering.busy || !sendable(text).trim() || !settings.check()) return false;
  if (isEdit) conversation.replaceLast(text);
  else conversation.add(text);
  answer();
  return true;
}

/** Answer the last question. */
async function answer() {
  if (answering.busy || !settings.check()) return;
  const turn = conversation.last;
  const request = { prompt: sendable(turn.question), history: conversation.history(), ...settings.request() };
  const answered = answering.run(turn, request, settings.key, () => transcript.grow(() => follow.keep()));
  const hadFocus = byId("turns").contains(document.activeElement); // a button that goes away now
  show();
  if (hadFocus) composer.focus();
  follow.toEnd();
  await answered;
  show();
  follow.keep();
  if (turn.end.kind === "failed") status.look();
}

function show() {
  transcript.show();
  composer.showBusy(answering.busy);
  byId("undo").hidden = earlier === null;
  keep("conversation", conversation);
}

/** Another conversation, from what was kept of it. */
function begin(saved) {
  conversation = new Conversation(saved);
  transcript?.clear();
  transcript = new Transcript(conversation, offers);
  show();
  composer.focus();
}

function newChat() {
  answering.stop();
  if (!conversation.last) return composer.focus();
  composer.leaveEdit();
  setAside();
}

/** Begin anew; the conversation so far can be come back to. */
function setAside() {
  if (conversation.last) earlier = conversation.toJSON();
  begin({});
}

/** The last question, for the composer to edit; it is not asked again by itself meanwhile. */
function takeUp() {
  if (answering.busy) return undefined;
  transcript.holdOff();
  return conversation.last?.question;
}

/** Change over to the chat that was set aside; this one is set aside instead. */
function undo() {
  answering.stop();
  const saved = earlier;
  earlier = conversation.last ? conversation.toJSON() : null;
  begin(saved);
  follow.toEnd();
}

/** Escape ends what goes on, the innermost first. */
function escape() {
  if (answering.busy) answering.stop();
  else if (!transcript.holdOff() && !composer.leaveEdit()) settings.close();
  composer.focus();
}

function pressed(event) {
  if (event.isComposing) return;
  if (event.key === "Escape") escape();
  if (event.code === "KeyN" && event.altKey && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    newChat();
  }
}

document.addEventListener("keydown", pressed);
addEventListener("pagehide", () => {
  answering.stop(); // the browser would end it anyway, and that would look like a broken connection
  keep("conversation", conversation);
});
byId("stop").addEventListener("click", () => escape());
byId("new-chat").addEventListener("click", newChat);
byId("undo").addEventListener("click", undo);
byId("examples").append(
  ...EXAMPLES.map((text) => {
    const pick = () => {
      composer.write(say(text));
      composer.focus();
    };
    return element("li", {}, element("button", { type: "button", onclick: pick }, say(text)));
  }),
);
begin(recall("conversation", {}));
follow.toEnd();
status.look();
